"""Signatures are held to what runs: a wrong annotation fails a test."""

import importlib
import pkgutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Float, TypeCheckError, jaxtyped

from rlm_jax.models.decoder import Decoder, DecoderConfig, modern
from rlm_jax.ops import Array, mixtures
from tests import typechecking
from tests.methods import systems

VECTORS = np.zeros((2, 3, 4), np.float32)


@pytest.mark.parametrize("room", typechecking.ROOMS)
def test_every_module_of_a_room_is_decorated(room):
    """Only what was imported after the hook is: no test may import a room before."""
    package = importlib.import_module(room)
    for info in pkgutil.iter_modules(package.__path__, f"{room}."):
        spec = importlib.import_module(info.name).__spec__
        assert spec is not None, info.name
        assert type(spec.loader).__name__ == "_JaxtypingLoader", info.name


def test_shapes_that_do_not_fit():
    mixtures.inner_product(VECTORS[:, 0], VECTORS)
    with pytest.raises(TypeCheckError, match="keys"):
        mixtures.inner_product(VECTORS[:, 0, :3], VECTORS)


def test_a_dtype_that_does_not_fit():
    values = np.zeros((2, 3), np.int32)
    mixtures.knn_log_probs(VECTORS[..., 0], values, values[:, 0])
    with pytest.raises(TypeCheckError, match="values"):
        mixtures.knn_log_probs(VECTORS[..., 0], VECTORS[..., 0], values[:, 0])


def test_a_module_called_through_linen():
    decoder = Decoder(modern(**systems.SIZES))
    params = decoder.init(jax.random.key(0), np.zeros((1, 2), np.int32))
    with pytest.raises(TypeCheckError, match="tokens"):
        decoder.apply(params, np.zeros(2, np.int32))


@jaxtyped(typechecker=typechecking.check)
def halved(x: Float[Array, "B D"]) -> Float[Array, "D B"]:
    return jnp.asarray(x)


def test_a_result_that_is_not_as_annotated():
    with pytest.raises(TypeCheckError, match="return value"):
        halved(VECTORS[0])


def test_fields_of_configurations_are_the_users():
    """What a user gives raises UserError where it is used, and no TypeCheckError."""
    assert modern(width="wide").width == "wide"
    norm: Any = "none"
    assert DecoderConfig(norm=norm).norm == "none"
