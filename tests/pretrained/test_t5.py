"""Published T5 folders: the way in and back, their oddities, and damaged ones."""

import dataclasses
import json
import os
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rlm_jax import pretrained
from rlm_jax.errors import UserError
from rlm_jax.models import t5
from rlm_jax.models.seq2seq import seq2seq

GOLDEN = pathlib.Path(
    os.environ.get("RLM_GOLDEN") or pathlib.Path(__file__).parents[1] / "golden"
)
NAMES = ("t5_v1_0", "t5_v1_1")
CROSS_BIAS = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


def weights(folder):
    return load_file(pathlib.Path(folder) / "model.safetensors")


def changed(folder, target, arrays=None, without=(), **config):
    """A copy of a folder with other fields and arrays."""
    shutil.copytree(folder, target)
    target.chmod(0o755)
    for path in target.iterdir():
        path.chmod(0o644)
    path = target / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    kept = weights(target) | (arrays or {})
    kept = {name: x for name, x in kept.items() if name not in without}
    save_file(kept, target / "model.safetensors")
    return target


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("name", NAMES)
def test_published_saved_and_loaded_again(tmp_path, name):
    config, params = pretrained.load_t5(GOLDEN / "hf" / name)
    assert config.tied == (name == "t5_v1_0") == (config.activation == "relu")
    pretrained.save_t5(tmp_path, config, params)
    published, ours = weights(GOLDEN / "hf" / name), weights(tmp_path)
    assert published.keys() == ours.keys()
    for key, x in published.items():
        np.testing.assert_array_equal(x, ours[key])
    told, wrote = (
        json.loads((folder / "config.json").read_text())
        for folder in (GOLDEN / "hf" / name, tmp_path)
    )
    assert {k: v for k, v in wrote.items() if told[k] != v} == {}
    again, same = pretrained.load_t5(tmp_path)
    assert again == config
    equal(params, same)


CHEAP = t5.v1_1(
    vocab_size=30, width=12, num_layers=2, num_decoder_layers=4, num_heads=4,
    head_width=5, feed_forward_width=14, num_buckets=8, max_distance=20,
    cross_attention_every=2, decoder_kv_heads=2, norm_epsilon=1e-5, dropout=0.2,
    start_id=2,
)  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [
        CHEAP,
        dataclasses.replace(
            CHEAP, cross_attention_every=1, decoder_kv_heads=0, legacy_cross_bias=True
        ),
    ],
    ids=["cheap", "legacy"],
)
def test_what_transformers_does_not_have_is_marked_and_loaded_again(tmp_path, config):
    shapes = jax.eval_shape(seq2seq(config).init, jax.random.key(0))
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: random.normal(size=x.shape).astype(np.float32), shapes
    )
    pretrained.save_t5(tmp_path, config, params)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model_type"] == "rlm_jax_t5"
    again, same = pretrained.load_t5(tmp_path)
    assert again == config
    equal(params, same)


def test_the_embedding_may_have_any_of_its_names(tmp_path):
    folder = GOLDEN / "hf" / "t5_v1_0"
    expected = pretrained.load_t5(folder)
    table = weights(folder)["shared.weight"]
    copies = [f"{stack}.embed_tokens.weight" for stack in ("encoder", "decoder")]
    copies.append("lm_head.weight")
    several = changed(folder, tmp_path / "a", dict.fromkeys(copies, table))
    one = changed(
        folder, tmp_path / "b", {copies[1]: table}, without=("shared.weight",)
    )
    for found in (several, one):
        config, params = pretrained.load_t5(found)
        assert config == expected[0]
        equal(params, expected[1])
    other = changed(folder, tmp_path / "c", {copies[2]: table + 1})
    with pytest.raises(UserError, match="lm_head.weight and shared.weight .* differ"):
        pretrained.load_t5(other)


def test_a_head_left_out_is_the_embedding(tmp_path):
    """As transformers 5 writes a v1.1 whose head equals the embedding."""
    folder = changed(
        GOLDEN / "hf" / "t5_v1_1", tmp_path / "a", without=("lm_head.weight",),
        tie_word_embeddings=True, scale_decoder_outputs=False,
    )  # fmt: skip
    config, params = pretrained.load_t5(folder)
    assert not config.tied
    np.testing.assert_array_equal(params["head"], params["embedding"].T)


def test_the_weights_names_say_which_feed_forward(tmp_path):
    for name, wrong in zip(NAMES, ("gated-gelu", "relu"), strict=True):
        expected, _ = pretrained.load_t5(GOLDEN / "hf" / name)
        folder = changed(GOLDEN / "hf" / name, tmp_path / name, feed_forward_proj=wrong)
        assert pretrained.load_t5(folder)[0] == expected


def test_the_old_cross_bias_is_read_where_it_is_asked_for(tmp_path, golden):
    bias = golden("fid_reader")["legacy_cross_bias"].astype(np.float32)
    plain = GOLDEN / "hf" / "t5_v1_0"
    folder = changed(plain, tmp_path / "old", {CROSS_BIAS: bias})
    config, params = pretrained.load_t5(folder)
    assert not config.legacy_cross_bias and "cross_bias" not in params["decoder"]
    config, params = pretrained.load_t5(folder, legacy_cross_bias=True)
    assert config.legacy_cross_bias
    np.testing.assert_array_equal(params["decoder"]["cross_bias"], bias)
    with pytest.raises(UserError, match="lack .*relative_attention_bias"):
        pretrained.load_t5(plain, legacy_cross_bias=True)


def test_fields_change_on_the_way_in():
    config, _ = pretrained.load_t5(
        GOLDEN / "hf" / "t5_v1_0", dtype="bfloat16", remat=True
    )
    assert (config.dtype, config.remat) == ("bfloat16", True)
    with pytest.raises(UserError, match="no such field"):
        pretrained.load_t5(GOLDEN / "hf" / "t5_v1_0", heads=3)


def test_bad_folders_are_named(tmp_path):
    folder = GOLDEN / "hf" / "t5_v1_0"
    name = "encoder.block.1.layer.0.SelfAttention.o.weight"
    cases = {
        "no model at": tmp_path,
        "is a 'bert'; only t5": GOLDEN / "hf" / "bert",
        "is a 'umt5'": changed(folder, tmp_path / "a", model_type="umt5"),
        "'gated-silu'": changed(folder, tmp_path / "b", feed_forward_proj="gated-silu"),
        f"lack '{name}'": changed(folder, tmp_path / "c", without=(name,)),
        "does not have": changed(folder, tmp_path / "d", {"adapter": np.zeros(2)}),
        "do not belong together": changed(folder, tmp_path / "e", d_kv=4),
        "hold 'decoder.block.1": changed(folder, tmp_path / "f", num_decoder_layers=1),
        "lack 'shared.weight'": changed(
            folder, tmp_path / "g", without=("shared.weight",)
        ),
    }
    for message, bad in cases.items():
        with pytest.raises(UserError, match=message):
            pretrained.load_t5(bad)
    lacking = changed(folder, tmp_path / "h")
    path = lacking / "config.json"
    told = json.loads(path.read_text())
    del told["d_model"]
    path.write_text(json.dumps(told))
    with pytest.raises(UserError, match="lacks 'd_model'"):
        pretrained.load_t5(lacking)


@pytest.mark.torch
@pytest.mark.parametrize("version", ["v1_0", "v1_1"])
def test_transformers_loads_what_is_saved(tmp_path, version):
    import torch
    import transformers

    sizes: dict[str, Any] = dict(
        vocab_size=30, width=12, num_layers=1, num_decoder_layers=2, num_heads=3,
        head_width=5, feed_forward_width=14, num_buckets=8, max_distance=20,
    )  # fmt: skip
    config = t5.T5Config(**sizes) if version == "v1_0" else t5.v1_1(**sizes)
    model = seq2seq(config)
    params = jax.jit(model.init)(jax.random.key(0))
    pretrained.save_t5(tmp_path / "a", config, params)
    network = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "a")
    ids = np.array([[4, 5, 6, 1], [7, 8, 1, 0]], np.int32)
    mask, targets = (ids > 0).astype(np.int32), np.array([[0, 4], [0, 9]], np.int32)
    states = model.encode(params, ids, mask)
    found = model.logits(params, model.decode(params, targets, states, mask).hidden)
    with torch.inference_mode():
        expected = network.eval()(
            input_ids=torch.from_numpy(ids).long(),
            attention_mask=torch.from_numpy(mask),
            decoder_input_ids=torch.from_numpy(targets).long(),
        ).logits
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-4)
    # And the way back, as transformers writes it.
    network.save_pretrained(tmp_path / "b")
    again, same = pretrained.load_t5(tmp_path / "b")
    assert again == config
    equal(params, same)
    # Of what it does not have it makes nothing wrong.
    cheap = dataclasses.replace(config, cross_attention_every=2)
    params = jax.jit(seq2seq(cheap).init)(jax.random.key(0))
    pretrained.save_t5(tmp_path / "c", cheap, params)
    with pytest.raises(ValueError, match="rlm_jax_t5"):
        transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "c")
