"""Messages of `federated` and its corrections."""

import jax.numpy as jnp
import pytest
from conftest import Mistake, explained
from test_federated import EXACT, SURROGATE, client_value_fn

import radazo

FEDERATED = "federated"


def run(**options):
    arguments = {"estimator": EXACT, "num_clients": 2, "key": 0, **options}
    return lambda: radazo.federated.federated(client_value_fn, **arguments)


MISTAKES = {
    "no function": Mistake(
        lambda: radazo.federated.federated(3, EXACT, num_clients=2, key=0),
        TypeError,
        f"{FEDERATED}(client_value_fn",
        "be a function",
        "3.",
        "It takes the parameters and the number of a client.",
    ),
    "the function that makes an estimator": Mistake(
        run(estimator=radazo.sphere_estimator),
        TypeError,
        f"{FEDERATED}(estimator",
        "be an Estimator",
        "<function",
        "a call, not the function.",
    ),
    "the function that makes a correction": Mistake(
        run(correction=radazo.federated.fzoos),
        TypeError,
        f"{FEDERATED}(correction",
        "be a Correction",
        "<function",
        "or `radazo.federated.fzoos()`: a call.",
    ),
    "no clients": Mistake(
        run(num_clients=0),
        ValueError,
        f"{FEDERATED}(num_clients",
        "be at least 1",
        "0.",
        "Clients are numbered from 0 on.",
    ),
    "no local step": Mistake(
        run(num_local_steps=0),
        ValueError,
        f"{FEDERATED}(num_local_steps",
        "be at least 1",
        "0.",
        "A client takes so many steps",
    ),
    "no rate": Mistake(
        run(learning_rate=0.0),
        ValueError,
        f"{FEDERATED}(learning_rate",
        "be finite and greater than 0",
        "0.0.",
        "1 takes the mean",
    ),
    "a share too few": Mistake(
        run(shares=[1.0]),
        ValueError,
        f"{FEDERATED}(shares",
        "be 2 numbers of at least 0, one a client, not all 0",
        "[1.0].",
        "None makes them equal.",
    ),
    "a share below 0": Mistake(
        run(shares=[2.0, -1.0]),
        ValueError,
        f"{FEDERATED}(shares",
        "be 2 numbers of at least 0, one a client, not all 0",
        "[2.0, -1.0].",
        "None makes them equal.",
    ),
    "a share that is no number": Mistake(
        run(shares=["a", "b"]),
        ValueError,
        f"{FEDERATED}(shares",
        "be 2 numbers of at least 0, one a client, not all 0",
        "['a', 'b'].",
        "None makes them equal.",
    ),
    "a negative strength": Mistake(
        lambda: radazo.federated.fed_prox(-0.1),
        ValueError,
        "fed_prox(strength",
        "be finite and at least 0",
        "-0.1.",
        "the way from the server",
    ),
    "no features": Mistake(
        lambda: radazo.federated.fzoos(num_features=0),
        ValueError,
        "fzoos(num_features",
        "be at least 1",
        "0.",
        "1000 is a good start.",
    ),
    "no length": Mistake(
        lambda: radazo.federated.fzoos(length_scale=-1.0),
        ValueError,
        "fzoos(length_scale",
        "be finite and greater than 0",
        "-1.0.",
        "over which the functions change.",
    ),
    "noise of less than nothing": Mistake(
        lambda: radazo.federated.fzoos(jitter=-1.0),
        ValueError,
        "fzoos(jitter",
        "be finite and at least 0",
        "-1.0.",
        "It is the share of noise",
    ),
    "a surrogate of an estimator without a buffer": Mistake(
        lambda: run(correction=radazo.federated.fzoos())().init(jnp.zeros(2)),
        TypeError,
        f"{FEDERATED}(estimator",
        "be a `trajectory_estimator`",
        "the state EstimatorState.",
        "Its buffer is what the surrogate is fitted to.",
    ),
    "a number": Mistake(
        lambda: run()().init({"w": jnp.zeros(2), "scale": 2.0}),
        TypeError,
        f"{FEDERATED}(params",
        "be arrays",
        "2.0.",
        "Close over what is constant, or make it an array.",
    ),
    "another mask": Mistake(
        lambda: run(
            estimator=SURROGATE, correction=radazo.federated.fzoos(mask=[True, False])
        )().init([jnp.zeros(2), jnp.zeros(1)]),
        ValueError,
        "fzoos(mask",
        "be that of the estimator",
        "one of 2 elements for points of 3.",
        "Give both the same mask.",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_wrong_argument_is_explained(mistake):
    explained(mistake)
