"""Zeroth-order optimization for JAX: minimize a function from its values alone.

  minimize                        takes a function and a start; nothing to tune
  ask, tell                       take the values from a loop of your own
  calibrate                       suggest a first smoothing distance and learning rate

Optimizers, each a complete `optax.GradientTransformationExtraArgs`

  zo_auto                         without a learning rate; the default of `minimize`
  radazo                          R-AdaZO: RMSProp of the momentum
  zo_sgd, zo_signsgd, zo_rmsprop, zo_adamm, meazo, zo_adamu, pars
  zo_psgd, projected_zo_adamm, projected      keep the parameters in a set
  sign_search                     among the vertices of a box
  roll_back, in_place             return to good parameters; hold a model only once

Ways to use an estimator in a training loop

  value_and_grad, estimate        in place of `jax.value_and_grad`; with all statistics
  with_estimator                  around any `optax` optimizer
  estimate_gradient               the first link of an `optax.chain`
  scale_by_radazo, scale_by_zo_adamm, scale_by_second_moment, first_moment
  scale_by_parabola               a learning rate from the values of f

Estimators, which turn function values into a gradient estimate

  finite_difference_estimator     and its presets sphere_, gaussian_, rademacher_,
                                  coordinate_ and orthogonal_estimator
  hadamard_estimator              nearly orthogonal directions, in sweeps across steps
  majority_vote_estimator, prior_guided_estimator, history_reuse_estimator,
  history_mean_estimator, trajectory_estimator, interpolation_estimator, svrg_estimator
  skip_outliers, clip_outliers    guard an estimator against outlying values
  forward, central, one_point, forward_mode      how a slope is taken

Sub-modules

  estimators, optimizers          the rest of both, and the types of their states
  directions, differences         samplers of directions, differences along them
  projections                     sets for `zo_psgd` and `projected`
  calibration                     the result of `calibrate`
  run                             checkpoints and queries, for loops of your own
  journal                         keep the slopes of a run, and replay it from them
  pool                            evaluate in workers that may fail
  evaluate                        evaluate along a direction without a copy of the model
  federated                       clients that step, a server that averages
  diagnostics                     errors and statistics of estimates
  random                          random numbers as functions of a key, and its contract
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
    hadamard_estimator,
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
    scale_by_parabola,
    scale_by_radazo,
    scale_by_second_moment,
    scale_by_zo_adamm,
    sign_search,
    value_and_grad,
    with_estimator,
    zo_adamm,
    zo_adamu,
    zo_auto,
    zo_psgd,
    zo_rmsprop,
    zo_sgd,
    zo_signsgd,
)
from radazo.run import MinimizeResult, ask, minimize, tell

__all__ = ["calibration", "diagnostics", "differences", "directions", "estimators"]
__all__ += ["evaluate", "federated", "journal", "optimizers", "pool", "projections"]
__all__ += ["random", "run"]
__all__ += ["Estimator", "MinimizeResult", "ask", "calibrate", "minimize", "tell"]
__all__ += ["central", "clip_outliers", "coordinate_estimator", "estimate"]
__all__ += ["finite_difference_estimator", "forward", "forward_mode"]
__all__ += ["gaussian_estimator", "history_mean_estimator", "history_reuse_estimator"]
__all__ += ["hadamard_estimator", "interpolation_estimator", "majority_vote_estimator"]
__all__ += ["one_point"]
__all__ += ["orthogonal_estimator", "prior_guided_estimator", "rademacher_estimator"]
__all__ += ["skip_outliers", "sphere_estimator", "svrg_estimator"]
__all__ += ["trajectory_estimator"]
__all__ += ["estimate_gradient", "first_moment", "in_place", "meazo", "pars"]
__all__ += ["projected", "projected_zo_adamm", "radazo", "roll_back", "scale_by_radazo"]
__all__ += ["scale_by_parabola", "scale_by_second_moment", "scale_by_zo_adamm"]
__all__ += ["sign_search", "value_and_grad", "with_estimator", "zo_adamm", "zo_adamu"]
__all__ += ["zo_auto", "zo_psgd", "zo_rmsprop", "zo_sgd", "zo_signsgd"]

__version__ = "0.1.0"
