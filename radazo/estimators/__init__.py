"""Estimators: function values in, gradient estimates out.

`finite_difference_estimator` and its presets average slope times direction. The others
reuse past steps, fit a model of the function, or guard an estimator.
"""

from radazo.core import (
    Estimate,
    EstimateInfo,
    Estimator,
    Evaluate,
    Queries,
    Readings,
    Step,
)
from radazo.estimators.build import estimate
from radazo.estimators.finite_difference import (
    coordinate_estimator,
    finite_difference_estimator,
    gaussian_estimator,
    orthogonal_estimator,
    rademacher_estimator,
    sphere_estimator,
)
from radazo.estimators.gaussian_process import Kernel, matern, rbf
from radazo.estimators.hadamard import HadamardState, hadamard_estimator
from radazo.estimators.history import (
    HistoryState,
    history_mean_estimator,
    history_reuse_estimator,
)
from radazo.estimators.interpolation import InterpolationState, interpolation_estimator
from radazo.estimators.majority_vote import majority_vote_estimator
from radazo.estimators.mean import EstimatorState
from radazo.estimators.outliers import OutlierState, clip_outliers, skip_outliers
from radazo.estimators.prior_guided import (
    Prior,
    PriorGuidedState,
    last_estimate,
    last_step,
    momentum_prior,
    prior_guided_estimator,
)
from radazo.estimators.svrg import SvrgState, svrg_estimator
from radazo.estimators.trajectory import TrajectoryState, trajectory_estimator

__all__ = ["Estimate", "EstimateInfo", "Estimator", "EstimatorState", "Evaluate"]
__all__ += ["HadamardState", "HistoryState", "InterpolationState", "Kernel"]
__all__ += ["OutlierState", "Prior"]
__all__ += ["PriorGuidedState", "Queries", "Readings", "Step", "SvrgState"]
__all__ += ["TrajectoryState"]
__all__ += ["clip_outliers", "coordinate_estimator", "estimate"]
__all__ += ["finite_difference_estimator", "gaussian_estimator"]
__all__ += ["hadamard_estimator", "history_mean_estimator", "history_reuse_estimator"]
__all__ += ["interpolation_estimator", "last_estimate", "last_step"]
__all__ += ["majority_vote_estimator", "matern", "momentum_prior"]
__all__ += ["orthogonal_estimator", "prior_guided_estimator", "rademacher_estimator"]
__all__ += ["rbf", "skip_outliers", "sphere_estimator", "svrg_estimator"]
__all__ += ["trajectory_estimator"]
