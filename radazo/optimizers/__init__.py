"""Complete optimizers, and the `optax` transformations that they are made of."""

from radazo.optimizers.combinators import (
    WithEstimatorState,
    estimate_gradient,
    value_and_grad,
    with_estimator,
)
from radazo.optimizers.in_place import PastSlopes, in_place
from radazo.optimizers.parabola import ScaleByParabolaState, scale_by_parabola
from radazo.optimizers.pars import ParsState, pars
from radazo.optimizers.presets import (
    meazo,
    radazo,
    zo_adamm,
    zo_rmsprop,
    zo_sgd,
    zo_signsgd,
)
from radazo.optimizers.projected import projected, projected_zo_adamm, zo_psgd
from radazo.optimizers.roll_back import RollBackState, roll_back
from radazo.optimizers.second_moments import (
    Granularity,
    RowsAndColumns,
    factored,
    per_coordinate,
    per_leaf,
    scalar,
)
from radazo.optimizers.sign_search import SignSearchState, sign_search
from radazo.optimizers.stepping import InPlace
from radazo.optimizers.transforms import (
    ScaleByRadazoState,
    ScaleBySecondMomentState,
    ScaleByZoAdammState,
    first_moment,
    scale_by_radazo,
    scale_by_second_moment,
    scale_by_zo_adamm,
)
from radazo.optimizers.zo_adamu import ZoAdamuState, zo_adamu
from radazo.optimizers.zo_auto import ZoAutoState, zo_auto

__all__ = ["Granularity", "InPlace", "ParsState", "PastSlopes", "RollBackState"]
__all__ += ["RowsAndColumns", "ScaleByParabolaState", "ScaleByRadazoState"]
__all__ += ["ScaleBySecondMomentState", "ScaleByZoAdammState", "SignSearchState"]
__all__ += ["WithEstimatorState", "ZoAdamuState", "ZoAutoState"]
__all__ += ["estimate_gradient", "factored", "first_moment", "in_place", "meazo"]
__all__ += ["pars", "per_coordinate", "per_leaf", "projected", "projected_zo_adamm"]
__all__ += ["radazo", "roll_back", "scalar", "scale_by_parabola", "scale_by_radazo"]
__all__ += ["scale_by_second_moment", "scale_by_zo_adamm", "sign_search"]
__all__ += ["value_and_grad", "with_estimator", "zo_adamm", "zo_adamu", "zo_auto"]
__all__ += ["zo_psgd", "zo_rmsprop", "zo_sgd", "zo_signsgd"]
