"""Fields that have one of a few words, and the tables that know what the words mean."""

import dataclasses
import typing
from typing import Literal

import jax
import pytest

from rlm_jax.configuration import check_fields
from rlm_jax.errors import UserError
from rlm_jax.methods import METHODS, dpr, knn_lm, retro, trime
from rlm_jax.models import layers
from rlm_jax.models.decoder import DecoderConfig


@dataclasses.dataclass
class Inner:
    shape: Literal["round", "square"] = "round"
    size: int = 1


@dataclasses.dataclass
class Outer:
    inner: Inner = dataclasses.field(default_factory=Inner)
    colour: Literal["red", "blue"] = "red"
    free: str = "anything"


def outer(shape: typing.Any = "round", colour: typing.Any = "red") -> Outer:
    return Outer(Inner(shape), colour)


@pytest.mark.parametrize("shape", ["round", "square"])
@pytest.mark.parametrize("colour", ["red", "blue"])
def test_words_that_fit(shape, colour):
    check_fields(outer(shape, colour))
    check_fields(outer(shape, colour), "--config")


@pytest.mark.parametrize(
    ("config", "name", "message"),
    [
        (outer(colour="green"), "", "^colour is 'green'; choose one of red, blue.$"),
        (outer(shape="flat"), "", "^inner.shape is 'flat'; choose one of round, squa"),
        (outer(shape="flat"), "--config", "^--config.inner.shape is 'flat'; choose"),
        (outer(colour=3), "x", "^x.colour is 3; choose one of red, blue.$"),
    ],
)
def test_words_that_do_not_fit(config, name, message):
    with pytest.raises(UserError, match=message):
        check_fields(config, name)


@pytest.mark.parametrize("system", METHODS)
def test_every_method_checks_its_words(system):
    """And those of its encoder or decoder, before anything is built."""
    kind, build = METHODS[system]
    config = kind()
    inside = [name for name in ("decoder", "encoder") if hasattr(config, name)]
    for name in inside:
        part = getattr(config, name)
        if not hasattr(part, "dtype"):
            continue
        wrong = dataclasses.replace(part, dtype="int3", vocab_size=9)
        with pytest.raises(UserError, match="dtype is 'int3'; choose one of float32"):
            method = build(dataclasses.replace(config, **{name: wrong}))
            method.init(jax.random.key(0))


@pytest.mark.parametrize(
    ("config", "field", "table"),
    [
        (trime.TrimeConfig, "memory", trime.MEMORIES),
        (retro.RetroConfig, "trained", retro.TRAINED),
        (dpr.DPRConfig, "towers", dpr.TOWERS),
        (dpr.DPRConfig, "negatives", dpr.NEGATIVES),
        (knn_lm.KnnLMConfig, "metric", knn_lm.SIMILARITIES),
        (DecoderConfig, "activation", {"swiglu": None, **layers.ACTIVATIONS}),
    ],
)
def test_a_fields_words_are_those_of_its_table(config, field, table):
    assert set(typing.get_args(typing.get_type_hints(config)[field])) == set(table)
