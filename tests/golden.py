"""Short runs with fixed keys, whose numbers are kept in `golden.json`.

`python tests/golden.py` writes the file anew; do so only where a change of numbers is
meant, and say in the commit why.
"""

import functools
import json
import platform
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import radazo

FILE = Path(__file__).parent / "golden.json"
NUM_STEPS = 5


def value_fn(params):
    """A smooth function of two leaves that is not quadratic."""
    a, b = params["a"], params["b"]
    return jnp.sum((1 - a) ** 2) + 10 * jnp.sum((b - a[:2] ** 2) ** 2) + a[2] * b[0, 1]


def start(dtype):
    a = jnp.asarray([0.3, -0.7, 1.1], dtype)
    return {"a": a, "b": jnp.asarray([[0.5, -0.2], [0.9, 0.1]], dtype)}


def terms_fn(params):
    """The same kind of function as terms."""
    return jnp.concatenate([params["a"] ** 2, (params["b"] * params["a"][:2]).ravel()])


def whole_fn(params):
    return value_fn(params) / 2


def mesh():
    devices = np.array(jax.devices()[:8])
    return NamedSharding(Mesh(devices, ("directions",)), PartitionSpec("directions"))


def estimators():
    """Estimator by name, each with the function that it is run on."""
    central = {"difference": radazo.central}
    few = {"num_directions": 4}
    rows = {
        "sphere": radazo.sphere_estimator(),
        "sphere, chunks": radazo.sphere_estimator(chunk_size=4),
        "gaussian, central": radazo.gaussian_estimator(**central, **few),
        "rademacher": radazo.rademacher_estimator(**few),
        "coordinate": radazo.coordinate_estimator(**few),
        "each coordinate": radazo.coordinate_estimator(num_directions=None),
        "orthogonal": radazo.orthogonal_estimator(**few),
        # Two steps a sweep of 8 directions, and sweeps of one step on two bases.
        "hadamard": radazo.hadamard_estimator(**few),
        "hadamard, two bases": radazo.hadamard_estimator(num_directions=12),
        "one point": radazo.sphere_estimator(difference=radazo.one_point, **few),
        "forward mode": radazo.sphere_estimator(difference=radazo.forward_mode, **few),
        "schedule": radazo.sphere_estimator(
            smoothing=optax.exponential_decay(0.1, 1, 0.5), **few
        ),
        "majority vote": radazo.majority_vote_estimator(**few),
        "prior": radazo.prior_guided_estimator(**few),
        "history reuse": radazo.history_reuse_estimator(**few, num_past=2),
        "history reuse, chunks": radazo.history_reuse_estimator(
            **few, num_past=2, chunk_size=2
        ),
        "history mean": radazo.history_mean_estimator(**few, num_past=2),
        "trajectory": radazo.trajectory_estimator(**few, num_points=12),
        "trajectory, virtual": radazo.trajectory_estimator(
            **few, num_points=20, max_virtual_steps=2, max_uncertainty=0.9
        ),
        "interpolation": radazo.interpolation_estimator(**few, smoothing=0.05),
        "svrg": radazo.svrg_estimator(
            radazo.sphere_estimator(**few), whole_fn, num_inner_steps=2
        ),
        "svrg, shared": radazo.svrg_estimator(
            radazo.gaussian_estimator(**few, **central),
            whole_fn,
            num_inner_steps=3,
            share_directions=True,
        ),
        "skip outliers": radazo.skip_outliers(radazo.sphere_estimator(**few), window=3),
        "clip outliers": radazo.clip_outliers(
            radazo.sphere_estimator(**few), window=2, factor=0.5
        ),
        "mesh": radazo.sphere_estimator(**few, sharding=mesh()),
        "mesh, central": radazo.gaussian_estimator(
            **few, **central, chunk_size=2, sharding=mesh()
        ),
    }
    found = {name: (estimator, value_fn) for name, estimator in rows.items()}
    for name, make in {
        "sphere, terms": radazo.sphere_estimator,
        "mesh, terms": functools.partial(radazo.sphere_estimator, sharding=mesh()),
        "trajectory, terms": functools.partial(
            radazo.trajectory_estimator, num_points=12
        ),
        "interpolation, terms": radazo.interpolation_estimator,
    }.items():
        found[name] = make(**few, terms=True), terms_fn
    return found


def optimizers():
    sphere = radazo.sphere_estimator(num_directions=4)
    return {
        "radazo": radazo.radazo(0.02, sphere, key=3),
        "zo_adamm": radazo.zo_adamm(0.02, sphere, key=3),
        "zo_rmsprop": radazo.zo_rmsprop(0.02, sphere, key=3),
        "zo_sgd": radazo.zo_sgd(0.02, sphere, key=3),
        "zo_signsgd": radazo.zo_signsgd(0.02, sphere, key=3),
        "meazo": radazo.meazo(0.02, key=3),
        "zo_adamu": radazo.zo_adamu(0.02, 5, key=3, boundaries=(1, 3)),
        "pars": radazo.pars(20.0, key=3, num_directions=4),
        "pars, no prior": radazo.pars(20.0, key=3, num_directions=4, prior=None),
        "zo_psgd": radazo.zo_psgd(0.02, radazo.projections.l2_ball(1.0), key=3),
        "projected_zo_adamm": radazo.projected_zo_adamm(
            0.02, radazo.projections.l2_ball(1.0), sphere, key=3
        ),
        "roll_back": radazo.roll_back(radazo.zo_sgd(0.5, sphere, key=3)),
        "zo_auto": radazo.zo_auto(key=3, num_directions=4),
        "scale_by_parabola": radazo.with_estimator(
            sphere, optax.chain(radazo.scale_by_parabola(), optax.scale(-1.0)), key=3
        ),
    }


def in_place():
    rule = optax.chain(radazo.scale_by_radazo(), optax.scale(-0.02))
    return {
        "in_place": radazo.in_place(rule, key=3, num_directions=2),
        "in_place, forward, sphere": radazo.in_place(
            optax.sgd(0.02),
            key=3,
            num_directions=3,
            sampler=radazo.directions.sphere,
            difference=radazo.forward,
            b1=0.5,
        ),
        "in_place, hadamard": radazo.in_place(
            optax.sgd(0.02),
            key=3,
            num_directions=3,
            sampler=radazo.directions.hadamard,
            b1=0.5,
        ),
    }


def hexadecimal(tree):
    """Return the bytes of each leaf."""
    return [np.asarray(x).tobytes().hex() for x in jax.tree.leaves(tree)]


def run(optimizer, function, dtype):
    """Parameters, value and count after a few steps, in one program."""

    def step(carry, _):
        params, state = carry
        if hasattr(optimizer, "step"):
            params, state, _ = optimizer.step(function, params, state)
        else:
            updates, state = optimizer.update(None, state, params, value_fn=function)
            params = optax.apply_updates(params, updates)
        return (params, state), None

    @jax.jit
    def whole(params):
        start = params, optimizer.init(params)
        (params, state), _ = jax.lax.scan(step, start, length=NUM_STEPS)
        return params, optax.tree.get(state, "last_value"), num_values(state)

    return hexadecimal(whole(start(dtype)))


def num_values(state):
    return optax.tree.get(state, "num_values")


def rows():
    """(optimizer, function) by name."""
    found = {
        name: (radazo.with_estimator(estimator, optax.sgd(0.01), key=7), function)
        for name, (estimator, function) in estimators().items()
    }
    for name, optimizer in (optimizers() | in_place()).items():
        found[name] = optimizer, value_fn
    return found


def machine():
    """Return the version and the processor, by which the last digits may differ."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(": ")[2] for line in lines if "model name" in line]
    return f"jax {jax.__version__}, {[*names, platform.machine()][0]}"


def main():
    numbers = {}
    for dtype in ("float32", "float64"):
        with jax.enable_x64(dtype == "float64"):
            for name, (optimizer, function) in rows().items():
                numbers[f"{name}, {dtype}"] = run(optimizer, function, dtype)
    lines = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in numbers.items()]
    head = f'"machine": {json.dumps(machine())}'
    FILE.write_text("{\n" + ",\n".join([head, *lines]) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    main()
