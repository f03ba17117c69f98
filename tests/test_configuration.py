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
from tests.methods import systems


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


OUT_OF_RANGE: dict[str, dict[str, float]] = {
    "knn_lm": {"weight": 1.2, "temperature": 0.0, "k": 0},
    "trime_external": {"own_memory_off": 1.5},
    "retro": {"k": 0, "chunk_length": 0},
    "rpt": {"cca_every": 0, "lower_layers": -1},
    "dpr": {"scale": 0.0, "chunk": -1, "k": 0},
    "contriever": {
        "temperature": 0.0, "label_smoothing": 1.5, "momentum": 2.0, "queue_size": 0,
    },
    "contriever_in_batch": {"temperature": -1.0, "k": 0},
    "replug": {"temperature": 0.0, "k": 0},
    "replug_lsr": {"gamma": 0.0, "beta": -1.0, "chunk": -1, "k": 0},
    "fid_kd": {"temperature": -1.0, "reader_temperature": 0.0, "chunk": -1, "k": 0},
    "reranker": {"chunk": -1, "k": 0},
    "npm": {"scale": -1.0, "k": 0},
    "fid": {"vectors": -1, "chunk": -1, "k": 0},
    "atlas": {"temperature": 0.0, "gold_temperature": 0.0, "weight": 0.0, "chunk": -1},
    "realm": {"temperature": 0.0, "chunk": -1},
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "field"),
    [(name, field) for name in OUT_OF_RANGE for field in OUT_OF_RANGE[name]],
)
def test_a_number_out_of_range_is_refused(name, field):
    """By a Python program's call too, which no launcher has checked before."""
    value = OUT_OF_RANGE[name][field]
    config = dataclasses.replace(systems.config(name), **{field: value})
    with pytest.raises(UserError, match=f"^{field} is {value}; "):
        METHODS[systems.SYSTEMS[name][0]][1](config)


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
