"""Run on all devices of several processes, with the same bits for any number of them.

  python -m benchmarks devices                    on the devices of this machine
  python -m benchmarks devices --processes 4      four processes on this machine
  python -m benchmarks devices --join             started once on each host of a cluster
                                                  or TPU pod, which JAX detects

Each process draws and evaluates its own directions. All of them get the function values
and compute the same update. The command prints a fingerprint of the parameters, which
is the same for any number of processes and devices.
"""

import argparse
import os
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import radazo

CHECKED_EVERY = 10


def main(argv: list[str]) -> None:
    args = _arguments(argv)
    if args.processes > 1 and args.process is None:
        _launch(args.processes, argv)
        return
    if args.join:
        jax.distributed.initialize()
    elif args.process is not None:
        jax.distributed.initialize(args.coordinator, args.processes, args.process)
    words, seconds = run(args.steps, args.dim, args.num_directions)
    if jax.process_index() == 0:
        print(
            f"{jax.device_count()} devices of {jax.process_count()} processes: "
            f"{seconds:.1f} s in all, fingerprint {words[0]:08x}{words[1]:08x}"
        )


def run(num_steps: int, dim: int, num_directions: int) -> tuple[np.ndarray, float]:
    """Return the fingerprint of the final parameters, and the seconds of the run."""
    mesh = Mesh(np.array(jax.devices()), ("directions",))
    shared = NamedSharding(mesh, PartitionSpec("directions"))
    estimator = radazo.sphere_estimator(num_directions=num_directions, sharding=shared)
    optimizer = radazo.radazo(0.01, estimator, key=0)

    params = jax.device_put(jnp.zeros(dim), NamedSharding(mesh, PartitionSpec()))
    started = time.perf_counter()
    result = radazo.minimize(
        _rosenbrock,
        params,
        optimizer,
        num_steps,
        callback=lambda result: radazo.diagnostics.check_replicas(result.params),
        callback_every=CHECKED_EVERY,
        progress=False,
    )
    seconds = time.perf_counter() - started
    return np.asarray(jax.jit(radazo.diagnostics.fingerprint)(result.params)), seconds


def _rosenbrock(x: jax.Array) -> jax.Array:
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def _launch(num_processes: int, argv: list[str]) -> None:
    """Start this command in several processes of this machine, which connect."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "benchmarks", "devices", *argv]
    command += ["--coordinator", address, "--process"]
    children = [subprocess.Popen([*command, str(i)]) for i in range(num_processes)]
    try:
        codes = [child.wait() for child in children]
    finally:
        for child in children:
            child.kill()
    if any(codes):
        sys.exit(f"processes ended with {codes}")


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks devices",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--join", action="store_true")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--dim", type=int, default=10_000)
    parser.add_argument("--num-directions", type=int, default=10)
    parser.add_argument("--coordinator", help=argparse.SUPPRESS)
    parser.add_argument("--process", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.steps < 1:
        parser.error("--steps must be at least 1")
    if args.processes < 1 or args.processes > (os.cpu_count() or 1) * 8:
        parser.error("--processes must be at least 1 and at most 8 a core")
    return args
