"""radazo: optimize a function that you can only evaluate.

`minimize(value_fn, params, radazo(0.01, key=0), num_steps)` is a whole run. Estimators
(`sphere_estimator`, ...) turn function values into a gradient; `with_estimator` puts
one around any optax optimizer, `value_and_grad` stands in for that of JAX, and
`radazo`, `zo_adamm`, `zo_rmsprop`, `zo_sgd`, `zo_signsgd`, `meazo` and `zo_adamu` are
complete optimizers.
"""

from radazo.calibration.calibrate import Calibration as Calibration
from radazo.calibration.calibrate import calibrate as calibrate
from radazo.core import EstimateInfo as EstimateInfo
from radazo.core import Estimator as Estimator
from radazo.diagnostics import EstimateStatistics as EstimateStatistics
from radazo.diagnostics import MonitorEstimateState as MonitorEstimateState
from radazo.diagnostics import cosine_similarity as cosine_similarity
from radazo.diagnostics import estimate_statistics as estimate_statistics
from radazo.diagnostics import monitor_estimate as monitor_estimate
from radazo.diagnostics import second_moment_error as second_moment_error
from radazo.differences import Difference as Difference
from radazo.differences import central as central
from radazo.differences import exact as exact
from radazo.differences import forward as forward
from radazo.differences import one_point as one_point
from radazo.directions import Distribution as Distribution
from radazo.directions import basis as basis
from radazo.directions import coordinate as coordinate
from radazo.directions import distribution_from as distribution_from
from radazo.directions import gaussian as gaussian
from radazo.directions import orthogonal as orthogonal
from radazo.directions import rademacher as rademacher
from radazo.directions import sample_directions as sample_directions
from radazo.directions import sphere as sphere
from radazo.estimators.finite_difference import (
    coordinate_estimator as coordinate_estimator,
)
from radazo.estimators.finite_difference import (
    finite_difference_estimator as finite_difference_estimator,
)
from radazo.estimators.finite_difference import gaussian_estimator as gaussian_estimator
from radazo.estimators.finite_difference import (
    orthogonal_estimator as orthogonal_estimator,
)
from radazo.estimators.finite_difference import (
    rademacher_estimator as rademacher_estimator,
)
from radazo.estimators.finite_difference import sphere_estimator as sphere_estimator
from radazo.estimators.gaussian_process import Kernel as Kernel
from radazo.estimators.gaussian_process import matern as matern
from radazo.estimators.gaussian_process import rbf as rbf
from radazo.estimators.history import HistoryState as HistoryState
from radazo.estimators.history import history_mean_estimator as history_mean_estimator
from radazo.estimators.history import history_reuse_estimator as history_reuse_estimator
from radazo.estimators.interpolation import InterpolationState as InterpolationState
from radazo.estimators.interpolation import (
    interpolation_estimator as interpolation_estimator,
)
from radazo.estimators.majority_vote import (
    majority_vote_estimator as majority_vote_estimator,
)
from radazo.estimators.mean import EstimatorState as EstimatorState
from radazo.estimators.outliers import OutlierState as OutlierState
from radazo.estimators.outliers import clip_outliers as clip_outliers
from radazo.estimators.outliers import skip_outliers as skip_outliers
from radazo.estimators.prior_guided import Prior as Prior
from radazo.estimators.prior_guided import PriorGuidedState as PriorGuidedState
from radazo.estimators.prior_guided import last_estimate as last_estimate
from radazo.estimators.prior_guided import last_step as last_step
from radazo.estimators.prior_guided import momentum as momentum
from radazo.estimators.prior_guided import (
    prior_guided_estimator as prior_guided_estimator,
)
from radazo.estimators.svrg import SvrgState as SvrgState
from radazo.estimators.svrg import svrg_estimator as svrg_estimator
from radazo.estimators.trajectory import TrajectoryState as TrajectoryState
from radazo.estimators.trajectory import trajectory_estimator as trajectory_estimator
from radazo.evaluate.answers import Replayed as Replayed
from radazo.evaluate.answers import Told as Told
from radazo.evaluate.answers import Watched as Watched
from radazo.evaluate.perturbed import perturbed as perturbed
from radazo.federated.corrections import Correction as Correction
from radazo.federated.corrections import fed_avg as fed_avg
from radazo.federated.corrections import fed_prox as fed_prox
from radazo.federated.corrections import fzoos as fzoos
from radazo.federated.corrections import scaffold as scaffold
from radazo.federated.federated import Federated as Federated
from radazo.federated.federated import FederatedInfo as FederatedInfo
from radazo.federated.federated import FederatedState as FederatedState
from radazo.federated.federated import federated as federated
from radazo.journal.file import Journal as Journal
from radazo.journal.file import open_journal as open_journal
from radazo.journal.file import read_journal as read_journal
from radazo.journal.file_format import JournalContents as JournalContents
from radazo.journal.file_format import JournalEntry as JournalEntry
from radazo.journal.file_format import JournalHeader as JournalHeader
from radazo.journal.record import recorded_step as recorded_step
from radazo.journal.replay import replay as replay
from radazo.optimizers.combinators import WithEstimatorState as WithEstimatorState
from radazo.optimizers.combinators import estimate_gradient as estimate_gradient
from radazo.optimizers.combinators import value_and_grad as value_and_grad
from radazo.optimizers.combinators import with_estimator as with_estimator
from radazo.optimizers.in_place import InPlace as InPlace
from radazo.optimizers.in_place import PastSlopes as PastSlopes
from radazo.optimizers.in_place import in_place as in_place
from radazo.optimizers.pars import ParsState as ParsState
from radazo.optimizers.pars import pars as pars
from radazo.optimizers.presets import meazo as meazo
from radazo.optimizers.presets import radazo as radazo
from radazo.optimizers.presets import zo_adamm as zo_adamm
from radazo.optimizers.presets import zo_rmsprop as zo_rmsprop
from radazo.optimizers.presets import zo_sgd as zo_sgd
from radazo.optimizers.presets import zo_signsgd as zo_signsgd
from radazo.optimizers.projected import projected as projected
from radazo.optimizers.projected import projected_zo_adamm as projected_zo_adamm
from radazo.optimizers.projected import zo_psgd as zo_psgd
from radazo.optimizers.roll_back import RollBackState as RollBackState
from radazo.optimizers.roll_back import roll_back as roll_back
from radazo.optimizers.second_moments import Granularity as Granularity
from radazo.optimizers.second_moments import RowsAndColumns as RowsAndColumns
from radazo.optimizers.second_moments import factored as factored
from radazo.optimizers.second_moments import per_coordinate as per_coordinate
from radazo.optimizers.second_moments import per_leaf as per_leaf
from radazo.optimizers.second_moments import scalar as scalar
from radazo.optimizers.transforms import ScaleByRadazoState as ScaleByRadazoState
from radazo.optimizers.transforms import (
    ScaleBySecondMomentState as ScaleBySecondMomentState,
)
from radazo.optimizers.transforms import ScaleByZoAdammState as ScaleByZoAdammState
from radazo.optimizers.transforms import first_moment as first_moment
from radazo.optimizers.transforms import scale_by_radazo as scale_by_radazo
from radazo.optimizers.transforms import (
    scale_by_second_moment as scale_by_second_moment,
)
from radazo.optimizers.transforms import scale_by_zo_adamm as scale_by_zo_adamm
from radazo.optimizers.zo_adamu import ZoAdamuState as ZoAdamuState
from radazo.optimizers.zo_adamu import zo_adamu as zo_adamu
from radazo.pool.pool import EvaluationPool as EvaluationPool
from radazo.pool.pool import evaluation_pool as evaluation_pool
from radazo.pool.stats import Ledger as Ledger
from radazo.projections import box as box
from radazo.projections import l1_ball as l1_ball
from radazo.projections import l2_ball as l2_ball
from radazo.projections import simplex as simplex
from radazo.random import KEY_CONTRACT_VERSION as KEY_CONTRACT_VERSION
from radazo.replicas import check_replicas as check_replicas
from radazo.replicas import fingerprint as fingerprint
from radazo.run.ask_tell import Queries as Queries
from radazo.run.ask_tell import QueryId as QueryId
from radazo.run.ask_tell import ask as ask
from radazo.run.ask_tell import tell as tell
from radazo.run.checkpointing import Checkpoints as Checkpoints
from radazo.run.checkpointing import open_checkpoints as open_checkpoints
from radazo.run.minimize import minimize as minimize
from radazo.run.results import MinimizeResult as MinimizeResult
from radazo.slope_errors import SlopeErrors as SlopeErrors
from radazo.slope_errors import slope_errors as slope_errors

__version__ = "0.1.0"
