"""Published decoders: the golden arrays, the way back, and damaged folders."""

import dataclasses
import json
import os
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from rlm_jax import pretrained
from rlm_jax.errors import UserError
from rlm_jax.models import generation
from rlm_jax.models.decoder import Decoder, gpt2, modern
from tests.pretrained import changed_folders
from tests.pretrained.changed_folders import change_config, change_weights

GOLDEN = pathlib.Path(
    os.environ.get("RLM_GOLDEN") or pathlib.Path(__file__).parents[1] / "golden"
)
NAMES = ("gpt2", "llama")


def golden(name):
    with np.load(GOLDEN / f"hf_{name}.npz", allow_pickle=False) as file:
        return dict(file)


def worst(found, expected, mask):
    """The largest difference where there are tokens."""
    difference = np.abs(np.asarray(found, np.float64) - expected)
    return difference[mask > 0].max()


def logits(decoder, tokens):
    """Before the softmax, which log-probabilities alone would not show."""
    output = decoder(tokens)
    (table, _), *_ = decoder.vocabulary.output_tables
    return output.features @ table.T, output


@pytest.mark.parametrize("name", NAMES)
def test_logits_features_and_loss(name):
    arrays = golden(name)
    config, params = pretrained.load_decoder(GOLDEN / "hf" / name)
    ids, mask = arrays["input_ids"].astype(np.int32), arrays["attention_mask"]
    targets, counted = np.maximum(arrays["labels"][:, 1:], 0), mask[:, 1:]

    @jax.jit
    def loss(params):
        def run(decoder):
            scores = decoder.score(ids, np.pad(targets, ((0, 0), (0, 1))))
            return logits(decoder, ids), scores

        applied: Any = Decoder(config).apply({"params": params}, method=run)
        found, (score, normaliser, _) = applied
        nll = ((normaliser - score)[:, :-1] * counted).sum() / counted.sum()
        return nll, found

    (value, (found, output)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    assert worst(found, arrays["logits"], mask) < 1e-4
    assert worst(output.features, arrays["hidden_states"][-1], mask) < 2e-5
    np.testing.assert_allclose(value, arrays["loss"], rtol=1e-5)
    if name == "gpt2":
        assert worst(output.keys, arrays["last_ffn_input"], mask) < 2e-5
        block = gradient["block_0"]
        for found, where in (
            (gradient["vocabulary"]["embedding_0"], "wte.weight"),
            (gradient["positions"], "wpe.weight"),
            (block["attention"]["qkv"]["kernel"], "h.0.attn.c_attn.weight"),
            (block["feed_forward"]["in"]["bias"], "h.0.mlp.c_fc.bias"),
            (gradient["final_norm"]["scale"], "ln_f.weight"),
        ):
            expected = arrays[f"grad.transformer.{where}"]
            assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("name", NAMES)
def test_the_cache_gives_the_same(name):
    """Right padding, as the golden arrays have it, and chunks of different sizes."""
    arrays = golden(name)
    config, params = pretrained.load_decoder(GOLDEN / "hf" / name)
    run = generation.generator(config)
    ids, mask = arrays["input_ids"].astype(np.int32), arrays["attention_mask"]
    extend = jax.jit(run.extend)
    length = ids.shape[1]
    kept, features = run.empty(*ids.shape), []
    for chunk in (slice(0, length // 2 + 1), slice(length // 2 + 1, length)):
        output, kept = extend(params, ids[:, chunk], mask[:, chunk], kept)
        features.append(output.features)
    features = np.concatenate(features, axis=1)
    assert worst(features, arrays["hidden_states"][-1], mask) < 2e-5


def small(**changes):
    return dict(
        vocab_size=30, num_layers=2, width=8, num_heads=2, feed_forward_width=12,
        max_length=16, **changes,
    )  # fmt: skip


OURS = {
    "gpt2": gpt2(**small()),
    "gpt2_untied_relu": gpt2(**small(activation="relu"), tie_embeddings=False),
    "modern": modern(**small()),
    "modern_grouped": modern(
        **small(num_kv_heads=1, head_width=6, rotary_base=500.0, norm_epsilon=1e-3),
        tie_embeddings=False,
    ),
    # Rows of 9 tokens, of which the pairs turn 2, 0.2, 0.02 ... times in 12.
    "llama3": modern(**small(rotary_scaling=(8.0, 0.1, 1.0, 12.0))),
}


def random_params(config):
    tokens = np.zeros((1, 2), np.int32)
    shapes = jax.eval_shape(
        lambda: Decoder(config).init(jax.random.key(0), tokens, tokens, method="score")
    )["params"]
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: (0.3 * random.normal(size=x.shape)).astype(np.float32), shapes
    )


@pytest.mark.parametrize("name", NAMES)
def test_published_saved_and_loaded_again(tmp_path, name):
    config, params = pretrained.load_decoder(GOLDEN / "hf" / name)
    pretrained.save_decoder(tmp_path / "saved", config, params)
    published, ours = (
        load_file(folder / "model.safetensors")
        for folder in (GOLDEN / "hf" / name, tmp_path / "saved")
    )
    assert published.keys() == ours.keys()
    for key, x in published.items():
        np.testing.assert_array_equal(x, ours[key])
    again, same = pretrained.load_decoder(tmp_path / "saved")
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, params, same)
    assert not list((tmp_path / "saved").glob(".*"))


@pytest.mark.parametrize("name", OURS)
def test_ours_saved_and_loaded_again(tmp_path, name):
    config, params = OURS[name], random_params(OURS[name])
    pretrained.save_decoder(tmp_path, config, params)
    again, same = pretrained.load_decoder(tmp_path)
    usual = {"layer": 1e-5, "rms": 1e-6}[config.norm]
    assert again == dataclasses.replace(
        config, norm_epsilon=config.norm_epsilon or usual
    )
    jax.tree.map(np.testing.assert_array_equal, params, same)


@pytest.mark.torch
@pytest.mark.parametrize("name", OURS)
def test_transformers_agrees_with_what_we_save(tmp_path, name):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    config, params = OURS[name], random_params(OURS[name])
    pretrained.save_decoder(tmp_path, config, params)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = np.random.default_rng(1).integers(0, 30, (2, 9))
    with torch.no_grad():
        theirs = model(input_ids=torch.from_numpy(ids)).logits.numpy()
    ours, _ = Decoder(config).apply(
        {"params": params}, ids.astype(np.int32), method=logits
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize(
    "config",
    [
        modern(**small(positions="sinusoidal")),
        modern(**small(activation="gelu")),
        gpt2(**small(cutoffs=(6, 14))),
        gpt2(**small(num_kv_heads=1)),
        gpt2(**small() | {"bias": False}),
    ],
    ids=["positions", "activation", "adaptive", "grouped", "no_bias"],
)
def test_what_has_no_place_in_the_layout_is_refused(tmp_path, config):
    with pytest.raises(UserError, match="build it by decoder.gpt2 or decoder.modern"):
        pretrained.save_decoder(tmp_path, config, {})


@pytest.fixture
def folder_of(tmp_path):
    def copied(name):
        folder = tmp_path / name
        shutil.copytree(GOLDEN / "hf" / name, folder)
        for path in folder.iterdir():
            path.chmod(0o644)
        return folder

    return copied


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def test_shards_are_read_by_their_index(folder_of):
    folder = folder_of("llama")
    _, params = pretrained.load_decoder(folder)
    changed_folders.divide(folder)
    jax.tree.map(
        np.testing.assert_array_equal, params, pretrained.load_decoder(folder)[1]
    )


@pytest.mark.parametrize("name", NAMES)
def test_older_files_are_read(folder_of, name):
    """Names without the prefix of the head's model, buffers, a tied head's copy."""
    folder = folder_of(name)
    wanted = pretrained.load_decoder(folder)

    def as_before(arrays):
        for key in [k for k in arrays if not k.startswith("lm_head")]:
            arrays[key.partition(".")[2]] = arrays.pop(key)
        if name == "gpt2":
            arrays["h.0.attn.bias"] = np.ones((1, 1, 4, 4), np.float32)
            arrays["lm_head.weight"] = arrays["wte.weight"].copy()
        else:
            arrays["layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)

    change_weights(folder, as_before)
    if name == "llama":
        base = config_of(folder)["rope_parameters"]["rope_theta"]
        change_config(folder, rope_parameters=None, rope_theta=base)
    found = pretrained.load_decoder(folder)
    assert found[0] == wanted[0]
    jax.tree.map(np.testing.assert_array_equal, found[1], wanted[1])


def test_rotary_bases_and_changes_are_heard(folder_of):
    folder = folder_of("llama")
    change_config(folder, rope_parameters=None, rope_theta=5e5)
    config, _ = pretrained.load_decoder(folder, dtype="bfloat16")
    assert (config.rotary_base, config.dtype) == (5e5, "bfloat16")
    llama3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    llama3 |= {"original_max_position_embeddings": 8192, "rope_type": "llama3"}
    change_config(folder, rope_scaling=llama3)
    config, _ = pretrained.load_decoder(folder)
    assert (config.rotary_base, config.rotary_scaling) == (5e5, (8, 1, 4, 8192))
    parameters = {"rope_type": "default", "rope_theta": 1e6}
    change_config(folder, rope_parameters=parameters)
    config, _ = pretrained.load_decoder(folder)
    assert (config.rotary_base, config.rotary_scaling) == (1e6, (8, 1, 4, 8192))
    change_config(folder, rope_scaling=None)
    config, _ = pretrained.load_decoder(folder)
    assert (config.rotary_base, config.rotary_scaling) == (1e6, ())


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def drop(folder, name):
    config = config_of(folder)
    del config[name]
    (folder / "config.json").write_text(json.dumps(config))


def without(name):
    return lambda folder: change_weights(folder, lambda arrays: arrays.pop(name))


def with_extra(folder):
    change_weights(folder, lambda a: a.update({"adapter.weight": np.ones((2, 2))}))


def with_another_vocabulary(folder):
    change_config(folder, vocab_size=config_of(folder)["vocab_size"] + 1)


def with_other_kv_heads(folder):
    heads, now = (
        config_of(folder)[f"num_{name}_heads"] for name in ("attention", "key_value")
    )
    divisors = (n for n in range(1, heads + 1) if heads % n == 0)
    change_config(folder, num_key_value_heads=next(n for n in divisors if n != now))


def told(**changes):
    return lambda folder: change_config(folder, **changes)


DAMAGES = {
    "no_folder": ("gpt2", shutil.rmtree, r"no config\.json"),
    "truncated": ("llama", truncate, "cannot be read"),
    "no_field": ("gpt2", lambda f: drop(f, "n_layer"), "lacks 'n_layer'"),
    "missing": (
        "gpt2", without("transformer.h.0.mlp.c_fc.bias"), "lack 'h.0.mlp.c_fc.bias'",
    ),
    "no_head": ("llama", without("lm_head.weight"), "lack 'lm_head.weight'"),
    "superfluous": ("llama", with_extra, "hold 'adapter.weight'"),
    "shape": ("gpt2", with_another_vocabulary, "do not belong together"),
    "kv_heads": ("llama", with_other_kv_heads, "do not belong together"),
    "architecture": ("gpt2", told(model_type="opt"), "is a 'opt'; decoders can be"),
    "activation": ("gpt2", told(activation_function="gelu"), "activation 'gelu'"),
    "scale": ("gpt2", told(scale_attn_weights=False), "scale_attn_weights=False"),
    "rope_type": (
        "llama", told(rope_parameters={"rope_type": "yarn"}), r"positions \('yarn'",
    ),
    "older_rope_type": (
        "llama",
        told(rope_parameters=None, rope_scaling={"type": "linear", "factor": 2.0}),
        r"positions \('linear'",
    ),
    "rope_field": (
        "llama", told(rope_parameters={"rope_type": "llama3"}), "lacks 'factor' of its",
    ),
    "rope_number": (
        "llama",
        told(
            rope_scaling=dict.fromkeys(
                ("factor", "low_freq_factor", "high_freq_factor")
            ) | {"rope_type": "llama3", "original_max_position_embeddings": 8}
        ),
        "no numbers for its rotary scaling",
    ),
    "window": (
        "llama", told(model_type="mistral", sliding_window=4096), "sliding_window=4096",
    ),
    "bias": ("llama", told(attention_bias=True), "attention_bias=True; only models"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_foreign_folder_is_named(folder_of, damage):
    name, spoil, words = DAMAGES[damage]
    folder = folder_of(name)
    spoil(folder)
    with pytest.raises(UserError, match=words):
        pretrained.load_decoder(folder)
