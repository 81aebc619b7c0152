"""radazo: optimize a function that you can only evaluate.

`minimize(value_fn, params, radazo(0.01, key=0), num_steps)` is a whole run. Estimators
(`sphere_estimator`, ...) turn function values into a gradient; `with_estimator` puts
one around any optax optimizer, `value_and_grad` stands in for that of JAX, and
`radazo`, `zo_adamm`, `zo_rmsprop`, `zo_sgd`, `zo_signsgd`, `meazo` and `zo_adamu` are
complete optimizers.

Floors, from the bottom up; a module imports only from floors below its own.

  0  base, checks, trees               what an estimator is; what an argument must be
     ledger, locks                     what a pool has spent; who writes a file
     offsets                           places beyond 2³², in two words
  1  threefry, granularities           random bits of (key, counter); shared moments
     differences, leaves               one slope along one line; pytrees as flat vectors
     projections, console              sets to stay in; what a run shows and hears
     kernels                           what a few points say of a function
     answers                           what stands in the place of a function
     meshes                            values taken on many devices, known to all
     replicas                          whether devices hold the same parameters
     diagnostics                       how good an estimate is
     packing                           pytrees as arrays for orbax, and JSON
     calls, executors                  one call in a worker; where workers come from
  2  directions, steps                 laws of directions; what estimators share
     moments, rounding                 update rules; small changes kept in the mean
     streaming                         a function at x + noise, without that point
     checkpointing                     a run kept on disk, to go on from
     dispatch                          which call is made when, and what it has cost
     records                           a run as a file of its slopes
  3  averaging, derivatives            the mean of slope times direction; exact slopes
     rungs                             values by distance, and their noise
  4  estimators, votes                 values to gradient; values to votes
     calibration                       a first smoothing and learning rate
     guided, history                   guesses of the gradient; past steps drawn again
     interpolation, anchored           past points used again; a snapshot to start from
     trajectory                        a function fitted to the points of a run
     parts                             parameters updated where they lie
     points                            values along a direction, without the points
     guards                            slopes that stand out: skipped, or clipped
  5  forms                             three ways into a training loop
     corrections                       what clients of a federated run add
  6  assembly                          what optimizers are made of
     federated                         clients that step, a server that averages
     in_place                          an optimizer that copies nothing
     ask_tell                          steps whose function is evaluated elsewhere
     rollback                          back to the last good parameters
  7  optimizers, adamu, pars           complete optimizers
     projected                         optimizers that stay in a set
     identity                          what tells one run from another
     recording                         a step that can be made again of its slopes
  8  compiled, replaying               steps of a run; the same without its function
     journaling                        a journal, opened and written
  9  runs, journal                     where a run stands; a journal on the command line
 10  loop                              a whole run
     pool                              values of a function from workers that may fail
"""

from radazo.adamu import ZoAdamuState as ZoAdamuState
from radazo.adamu import zo_adamu as zo_adamu
from radazo.anchored import SvrgState as SvrgState
from radazo.anchored import svrg_estimator as svrg_estimator
from radazo.answers import Replayed as Replayed
from radazo.answers import Told as Told
from radazo.answers import Watched as Watched
from radazo.ask_tell import Queries as Queries
from radazo.ask_tell import QueryId as QueryId
from radazo.ask_tell import ask as ask
from radazo.ask_tell import tell as tell
from radazo.averaging import EstimatorState as EstimatorState
from radazo.base import EstimateInfo as EstimateInfo
from radazo.base import Estimator as Estimator
from radazo.calibration import Calibration as Calibration
from radazo.calibration import calibrate as calibrate
from radazo.checkpointing import Checkpoints as Checkpoints
from radazo.checkpointing import open_checkpoints as open_checkpoints
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
from radazo.granularities import Granularity as Granularity
from radazo.granularities import RowsAndColumns as RowsAndColumns
from radazo.granularities import factored as factored
from radazo.granularities import per_coordinate as per_coordinate
from radazo.granularities import per_leaf as per_leaf
from radazo.granularities import scalar as scalar
from radazo.guards import OutlierState as OutlierState
from radazo.guards import clip_outliers as clip_outliers
from radazo.guards import skip_outliers as skip_outliers
from radazo.guided import Prior as Prior
from radazo.guided import PriorGuidedState as PriorGuidedState
from radazo.guided import last_estimate as last_estimate
from radazo.guided import last_step as last_step
from radazo.guided import momentum as momentum
from radazo.guided import prior_guided_estimator as prior_guided_estimator
from radazo.history import HistoryState as HistoryState
from radazo.history import history_mean_estimator as history_mean_estimator
from radazo.history import history_reuse_estimator as history_reuse_estimator
from radazo.in_place import InPlace as InPlace
from radazo.in_place import PastSlopes as PastSlopes
from radazo.in_place import in_place as in_place
from radazo.interpolation import InterpolationState as InterpolationState
from radazo.interpolation import interpolation_estimator as interpolation_estimator
from radazo.journaling import Journal as Journal
from radazo.journaling import open_journal as open_journal
from radazo.journaling import read_journal as read_journal
from radazo.kernels import Kernel as Kernel
from radazo.kernels import matern as matern
from radazo.kernels import rbf as rbf
from radazo.ledger import Ledger as Ledger
from radazo.loop import minimize as minimize
from radazo.moments import ScaleByRadazoState as ScaleByRadazoState
from radazo.moments import ScaleBySecondMomentState as ScaleBySecondMomentState
from radazo.moments import ScaleByZoAdammState as ScaleByZoAdammState
from radazo.moments import first_moment as first_moment
from radazo.moments import scale_by_radazo as scale_by_radazo
from radazo.moments import scale_by_second_moment as scale_by_second_moment
from radazo.moments import scale_by_zo_adamm as scale_by_zo_adamm
from radazo.optimizers import meazo as meazo
from radazo.optimizers import radazo as radazo
from radazo.optimizers import zo_adamm as zo_adamm
from radazo.optimizers import zo_rmsprop as zo_rmsprop
from radazo.optimizers import zo_sgd as zo_sgd
from radazo.optimizers import zo_signsgd as zo_signsgd
from radazo.pars import ParsState as ParsState
from radazo.pars import pars as pars
from radazo.points import perturbed as perturbed
from radazo.pool import EvaluationPool as EvaluationPool
from radazo.pool import evaluation_pool as evaluation_pool
from radazo.projected import projected as projected
from radazo.projected import projected_zo_adamm as projected_zo_adamm
from radazo.projected import zo_psgd as zo_psgd
from radazo.projections import box as box
from radazo.projections import l1_ball as l1_ball
from radazo.projections import l2_ball as l2_ball
from radazo.projections import simplex as simplex
from radazo.recording import recorded_step as recorded_step
from radazo.records import JournalContents as JournalContents
from radazo.records import JournalEntry as JournalEntry
from radazo.records import JournalHeader as JournalHeader
from radazo.replaying import replay as replay
from radazo.replicas import check_replicas as check_replicas
from radazo.replicas import fingerprint as fingerprint
from radazo.rollback import RollBackState as RollBackState
from radazo.rollback import roll_back as roll_back
from radazo.runs import MinimizeResult as MinimizeResult
from radazo.threefry import KEY_CONTRACT_VERSION as KEY_CONTRACT_VERSION
from radazo.trajectory import TrajectoryState as TrajectoryState
from radazo.trajectory import trajectory_estimator as trajectory_estimator
from radazo.votes import majority_vote_estimator as majority_vote_estimator

__version__ = "0.1.0"
