"""Zeroth-order optimization for JAX: minimize a function from its values alone.

  minimize                        run an optimizer on a function
  calibrate                       suggest a first smoothing distance and learning rate
  ask, tell                       evaluate the function in a loop of your own

Optimizers, each a complete `optax.GradientTransformationExtraArgs`

  radazo                          R-AdaZO: RMSProp of the momentum
  zo_sgd, zo_signsgd, zo_rmsprop, zo_adamm, meazo, zo_adamu, pars
  zo_psgd, projected_zo_adamm, projected      keep the parameters in a set
  roll_back                       return to the last good parameters
  in_place                        update a model that fits into memory once

Forms in which an estimator enters a training loop

  value_and_grad                  in place of `jax.value_and_grad`
  with_estimator                  around any `optax` optimizer
  estimate_gradient               the first link of an `optax.chain`
  estimate                        one estimate, with its state and its statistics
  scale_by_radazo, scale_by_zo_adamm, scale_by_second_moment, first_moment

Estimators, which turn function values into a gradient estimate

  sphere_estimator, gaussian_estimator, rademacher_estimator, coordinate_estimator,
  orthogonal_estimator, finite_difference_estimator
  majority_vote_estimator, prior_guided_estimator, history_reuse_estimator,
  history_mean_estimator, trajectory_estimator, interpolation_estimator, svrg_estimator
  skip_outliers, clip_outliers    guard an estimator against outlying values
  forward, central, one_point, forward_mode      how a slope is taken

Sub-modules

  radazo.directions, radazo.differences, radazo.projections, radazo.diagnostics
  radazo.estimators, radazo.optimizers, radazo.evaluate, radazo.run
  radazo.journal                  keep the slopes of a run, and replay it
  radazo.pool                     evaluate the function in workers that may fail
  radazo.calibration, radazo.federated
"""

from radazo import (
    calibration,
    diagnostics,
    differences,
    directions,
    estimators,
    evaluate,
    federated,
    journal,
    optimizers,
    pool,
    projections,
    random,
    run,
)
from radazo.calibration import calibrate
from radazo.core import Estimator
from radazo.differences import central, forward, forward_mode, one_point
from radazo.estimators import (
    clip_outliers,
    coordinate_estimator,
    estimate,
    finite_difference_estimator,
    gaussian_estimator,
    history_mean_estimator,
    history_reuse_estimator,
    interpolation_estimator,
    majority_vote_estimator,
    orthogonal_estimator,
    prior_guided_estimator,
    rademacher_estimator,
    skip_outliers,
    sphere_estimator,
    svrg_estimator,
    trajectory_estimator,
)
from radazo.optimizers import (
    estimate_gradient,
    first_moment,
    in_place,
    meazo,
    pars,
    projected,
    projected_zo_adamm,
    radazo,
    roll_back,
    scale_by_radazo,
    scale_by_second_moment,
    scale_by_zo_adamm,
    value_and_grad,
    with_estimator,
    zo_adamm,
    zo_adamu,
    zo_psgd,
    zo_rmsprop,
    zo_sgd,
    zo_signsgd,
)
from radazo.run import MinimizeResult, ask, minimize, tell

__all__ = [
    "Estimator",
    "MinimizeResult",
    "ask",
    "calibrate",
    "calibration",
    "central",
    "clip_outliers",
    "coordinate_estimator",
    "diagnostics",
    "differences",
    "directions",
    "estimate",
    "estimate_gradient",
    "estimators",
    "evaluate",
    "federated",
    "finite_difference_estimator",
    "first_moment",
    "forward",
    "forward_mode",
    "gaussian_estimator",
    "history_mean_estimator",
    "history_reuse_estimator",
    "in_place",
    "interpolation_estimator",
    "journal",
    "majority_vote_estimator",
    "meazo",
    "minimize",
    "one_point",
    "optimizers",
    "orthogonal_estimator",
    "pars",
    "pool",
    "prior_guided_estimator",
    "projected",
    "projected_zo_adamm",
    "projections",
    "radazo",
    "rademacher_estimator",
    "random",
    "roll_back",
    "run",
    "scale_by_radazo",
    "scale_by_second_moment",
    "scale_by_zo_adamm",
    "skip_outliers",
    "sphere_estimator",
    "svrg_estimator",
    "tell",
    "trajectory_estimator",
    "value_and_grad",
    "with_estimator",
    "zo_adamm",
    "zo_adamu",
    "zo_psgd",
    "zo_rmsprop",
    "zo_sgd",
    "zo_signsgd",
]

__version__ = "0.1.0"
