"""Folders of encoders: shards, half precision, old names, pooling, and damage."""

import dataclasses
import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rlm_jax import pretrained
from rlm_jax.errors import UserError
from tests.pretrained import changed_folders
from tests.pretrained.changed_folders import change_config, change_weights

GOLDEN = pathlib.Path(
    os.environ.get("RLM_GOLDEN") or pathlib.Path(__file__).parents[1] / "golden"
)


@pytest.fixture
def folder(tmp_path):
    copied = tmp_path / "model"
    shutil.copytree(GOLDEN / "hf" / "bert", copied)
    for path in copied.iterdir():
        path.chmod(0o644)
    return copied


def test_shards_are_read_by_their_index(folder):
    config, params = pretrained.load_encoder(folder)
    changed_folders.divide(folder)
    jax.tree.map(
        np.testing.assert_array_equal, params, pretrained.load_encoder(folder)[1]
    )
    (folder / "b.safetensors").unlink()
    with pytest.raises(UserError, match=r"b\.safetensors cannot be read"):
        pretrained.load_encoder(folder)


def test_half_precision_is_widened(folder):
    def halve(arrays):
        arrays.update({n: x.astype(np.float16) for n, x in arrays.items()})

    _, params = pretrained.load_encoder(folder)
    change_weights(folder, halve)
    _, rounded = pretrained.load_encoder(folder)
    assert {x.dtype for x in jax.tree.leaves(rounded)} == {np.dtype(np.float32)}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        params,
        rounded,
    )


def test_tensorflows_names_of_norms_are_known(folder):
    """As in the first BERT checkpoints."""

    def rename(arrays):
        for name in [n for n in arrays if "LayerNorm" in n]:
            new = name.replace(".weight", ".gamma").replace(".bias", ".beta")
            arrays[new] = arrays.pop(name)

    _, params = pretrained.load_encoder(folder)
    change_weights(folder, rename)
    jax.tree.map(
        np.testing.assert_array_equal, params, pretrained.load_encoder(folder)[1]
    )


def test_pooling_is_the_folders_if_it_says_one(folder):
    otherwise = {"pooling": "cls", "normalise": True}
    config, _ = pretrained.load_encoder(folder, otherwise=otherwise)
    assert config.pooling == "cls" and config.normalise
    pretrained.save_encoder(folder, *pretrained.load_encoder(folder))
    config, _ = pretrained.load_encoder(folder, otherwise=otherwise)
    assert config.pooling == "mean" and not config.normalise
    question = GOLDEN / "hf" / "dpr_question_encoder"
    config, _ = pretrained.load_encoder(question, otherwise={"pooling": "mean"})
    assert config.pooling == "cls"


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def only_pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def without(name):
    return lambda folder: change_weights(folder, lambda arrays: arrays.pop(name))


def with_extra(folder):
    change_weights(folder, lambda a: a.update({"adapter.weight": np.ones((2, 2))}))


def with_another_vocabulary(folder):
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    change_config(folder, vocab_size=size + 1)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (shutil.rmtree, r"no config\.json"),
        (lambda f: (f / "config.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "model.safetensors").unlink(), "There are no weights"),
        (only_pickle, "convert it where you trust it: python -c"),
        (truncate, "cannot be read"),
        (without("encoder.layer.0.output.dense.bias"), "lack 'encoder.layer.0.output"),
        (without("embeddings.word_embeddings.weight"), "not of a BERT"),
        (with_extra, "hold 'adapter.weight'"),
        (with_another_vocabulary, "do not belong together"),
        (lambda f: change_config(f, model_type="t5"), "is a 't5'"),
        (lambda f: change_config(f, hidden_act="relu"), "activation 'relu'"),
        (
            lambda f: change_config(f, position_embedding_type="relative_key"),
            "'relative_key' positions",
        ),
    ],
    ids=[
        "no_folder", "config_cut", "no_weights", "pickle", "truncated", "missing",
        "other", "superfluous", "shape", "architecture", "activation", "positions",
    ],
)  # fmt: skip
def test_a_damaged_folder_is_named(folder, damage, words):
    damage(folder)
    with pytest.raises(UserError, match=words):
        pretrained.load_encoder(folder)


def test_unknown_pooling_is_refused(folder):
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"pooling_mode_max_tokens": True})
    )
    (folder / "modules.json").write_text(
        json.dumps([{"type": "x.Transformer", "path": ""}])
    )
    with pytest.raises(UserError, match="can be loaded"):
        pretrained.load_encoder(folder)


def test_a_projection_has_no_place_in_the_layout(tmp_path):
    config, params = pretrained.load_encoder(GOLDEN / "hf" / "bert")
    with pytest.raises(UserError, match="projection=0"):
        pretrained.save_encoder(
            tmp_path, dataclasses.replace(config, projection=4), params
        )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named(folder, value):
    arrays = load_file(folder / "model.safetensors")
    name = "encoder.layer.0.attention.self.key.weight"
    arrays[name][0, 0] = value
    save_file(arrays, folder / "model.safetensors")
    with pytest.raises(UserError, match=f"{name} in .* holds NaN or infinity") as error:
        pretrained.load_encoder(folder)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {"hidden_size": "8"},
            "hidden_size='8', which does not fit: give a whole numb",
        ),
        ({"hidden_size": 8.5}, "hidden_size=8.5"),
        ({"num_hidden_layers": True}, "num_hidden_layers=True"),
        ({"num_attention_heads": 0}, "num_attention_heads=0, .*of 1 or more"),
        ({"vocab_size": 2**63}, "vocab_size=9223372036854775808"),
        ({"pad_token_id": -1}, "pad_token_id=-1, .*of 0 or more"),
        ({"pad_token_id": [0]}, r"pad_token_id=\[0\]"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps=nan, .*a finite number"),
        ({"layer_norm_eps": "tiny"}, "layer_norm_eps='tiny'"),
        ({"model_type": ["bert"]}, r"\['bert'\]"),
        ({"hidden_dropout_prob": 1.5}, "dropout is 1.5; choose a number from 0 to bel"),
        (
            {"num_hidden_layers": 10**9},
            "num_layers is 1000000000; choose at most 1,000",
        ),
        ({"num_attention_heads": 3}, "does not divide into 3 heads"),
        ({"hidden_size": None}, "lacks 'hidden_size'"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_its_file(folder, config, words):
    change_config(folder, **config)
    with pytest.raises(UserError, match=words) as error:
        pretrained.load_encoder(folder)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("content", ["[1]", "3", "[" * 100_000])
def test_a_config_that_is_no_object_is_named(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json"):
        pretrained.load_encoder(folder)


def test_a_device_among_the_files_is_not_waited_for(folder):
    for name in ("config.json", "model.safetensors"):
        (folder / name).rename(folder / "away")
        (folder / name).symlink_to("/dev/zero")
        with pytest.raises(UserError, match="is a device or a pipe"):
            pretrained.load_encoder(folder)
        (folder / name).unlink()
        (folder / "away").rename(folder / name)


def test_a_name_that_is_too_long():
    for name in ("x" * 5000, "x/" * 2500, "a\0b"):
        with pytest.raises(UserError):
            pretrained.load_encoder(name)
