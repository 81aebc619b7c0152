"""radazo: optimize a function that you can only evaluate.

`minimize(value_fn, params, radazo(0.01, key=0), num_steps)` is a whole run. Estimators
(`sphere_estimator`, ...) turn function values into a gradient; `with_estimator` puts
one around any optax optimizer, `value_and_grad` stands in for that of JAX, and
`radazo`, `zo_adamm`, `zo_rmsprop`, `zo_sgd`, `zo_signsgd` are complete optimizers.

Floors, from the bottom up; a module imports only from floors below its own.

  0  base, checks, trees               what an estimator is; what an argument must be
  1  threefry, moments                 random bits of (key, counter); update rules
     differences, leaves               one slope along one line; pytrees as flat vectors
     boxes, console                    bounds; what a run shows and hears
     kernels                           what a few points say of a function
     diagnostics                       how good an estimate is
  2  directions, steps                 laws of directions; what estimators share
  3  averaging, derivatives            the mean of slope times direction; exact slopes
  4  estimators, trajectory            values to gradient
  5  forms                             three ways into a training loop
     corrections                       what clients of a federated run add
  6  optimizers, loop                  complete optimizers; a whole run
     federated                         clients that step, a server that averages
"""

from radazo.averaging import EstimatorState as EstimatorState
from radazo.base import EstimateInfo as EstimateInfo
from radazo.base import Estimator as Estimator
from radazo.corrections import Correction as Correction
from radazo.corrections import fed_avg as fed_avg
from radazo.corrections import fed_prox as fed_prox
from radazo.corrections import fzoos as fzoos
from radazo.corrections import scaffold as scaffold
from radazo.derivatives import SlopeErrors as SlopeErrors
from radazo.derivatives import slope_errors as slope_errors
from radazo.diagnostics import EstimateStatistics as EstimateStatistics
from radazo.diagnostics import MonitorEstimateState as MonitorEstimateState
from radazo.diagnostics import cosine_similarity as cosine_similarity
from radazo.diagnostics import estimate_statistics as estimate_statistics
from radazo.diagnostics import monitor_estimate as monitor_estimate
from radazo.diagnostics import second_moment_error as second_moment_error
from radazo.differences import Difference as Difference
from radazo.differences import central as central
from radazo.differences import forward as forward
from radazo.directions import Distribution as Distribution
from radazo.directions import coordinate as coordinate
from radazo.directions import gaussian as gaussian
from radazo.directions import orthogonal as orthogonal
from radazo.directions import rademacher as rademacher
from radazo.directions import sample_directions as sample_directions
from radazo.directions import sphere as sphere
from radazo.estimators import coordinate_estimator as coordinate_estimator
from radazo.estimators import finite_difference_estimator as finite_difference_estimator
from radazo.estimators import gaussian_estimator as gaussian_estimator
from radazo.estimators import orthogonal_estimator as orthogonal_estimator
from radazo.estimators import rademacher_estimator as rademacher_estimator
from radazo.estimators import sphere_estimator as sphere_estimator
from radazo.federated import Federated as Federated
from radazo.federated import FederatedInfo as FederatedInfo
from radazo.federated import FederatedState as FederatedState
from radazo.federated import federated as federated
from radazo.forms import WithEstimatorState as WithEstimatorState
from radazo.forms import estimate_gradient as estimate_gradient
from radazo.forms import value_and_grad as value_and_grad
from radazo.forms import with_estimator as with_estimator
from radazo.kernels import Kernel as Kernel
from radazo.kernels import matern as matern
from radazo.kernels import rbf as rbf
from radazo.loop import MinimizeResult as MinimizeResult
from radazo.loop import minimize as minimize
from radazo.moments import ScaleByRadazoState as ScaleByRadazoState
from radazo.moments import ScaleBySecondMomentState as ScaleBySecondMomentState
from radazo.moments import ScaleByZoAdammState as ScaleByZoAdammState
from radazo.moments import first_moment as first_moment
from radazo.moments import scale_by_radazo as scale_by_radazo
from radazo.moments import scale_by_second_moment as scale_by_second_moment
from radazo.moments import scale_by_zo_adamm as scale_by_zo_adamm
from radazo.optimizers import radazo as radazo
from radazo.optimizers import zo_adamm as zo_adamm
from radazo.optimizers import zo_rmsprop as zo_rmsprop
from radazo.optimizers import zo_sgd as zo_sgd
from radazo.optimizers import zo_signsgd as zo_signsgd
from radazo.threefry import KEY_CONTRACT_VERSION as KEY_CONTRACT_VERSION
from radazo.trajectory import TrajectoryState as TrajectoryState
from radazo.trajectory import trajectory_estimator as trajectory_estimator

__version__ = "0.1.0"
