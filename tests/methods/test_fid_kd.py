"""FiD-KD against the golden arrays; what all distilled retrievers share is LSR's."""

import dataclasses

import jax
import numpy as np
import pytest

from rlm_jax import pretrained
from rlm_jax.methods import fid_kd
from rlm_jax.methods.fid_kd import FiDKDConfig


@pytest.mark.parametrize("tag", ["masked", "nomask", "cls"])
def test_golden_arrays(golden, golden_folder, tag):
    """The released student: without a mask it reads padding as text."""
    z = golden("fid_kd_retriever")
    kernel = z["w.proj.weight"].T
    bert, params = pretrained.load_encoder(golden_folder / "hf" / "bert", dropout=0.0)
    encoder = dataclasses.replace(
        bert,
        pooling="cls" if tag == "cls" else "mean",
        projection=kernel.shape[1],
        projection_norm=True,
    )
    params = {
        **params,
        "projection": {"kernel": kernel, "bias": z["w.proj.bias"]},
        "projection_norm": {"scale": z["w.norm.weight"], "bias": z["w.norm.bias"]},
    }
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
    questions, number, _ = z["passage_ids"].shape
    batch = {
        "teacher_scores": z["gold_score"].astype(np.float32),
        "present": np.ones((questions, number), bool),
        "weight": np.ones(questions, np.float32),
    }
    for ours, theirs in (("query", "question"), ("passage", "passage")):
        mask = z[f"{theirs}_mask"].astype(np.int32)
        batch[f"{ours}_ids"] = z[f"{theirs}_ids"].astype(np.int32)
        batch[f"{ours}_mask"] = np.ones_like(mask) if tag == "nomask" else mask
    method = fid_kd.fid_kd(FiDKDConfig(encoder, k=number))

    def mean(params):
        total, weight = method.evaluate(params, batch)["loss"]
        return total / weight / number  # as the released code divides

    value, gradient = jax.jit(jax.value_and_grad(mean))(params)
    np.testing.assert_allclose(value, z[f"{tag}_loss"], rtol=1e-4)
    got = gradient["projection"]["kernel"].T
    wanted = z[f"{tag}_grad_proj_weight"]
    np.testing.assert_allclose(got, wanted, atol=1e-4 * np.abs(wanted).max())
    if tag == "masked":
        whole = value * number
        np.testing.assert_allclose(whole, z["masked_loss_batchmean"], rtol=1e-4)
    retrieval = method.retrieval
    assert retrieval is not None
    vectors = jax.jit(retrieval.encode_queries)(
        params, {"ids": batch["query_ids"], "mask": batch["query_mask"]}
    )
    np.testing.assert_allclose(vectors, z[f"{tag}_question_emb"], atol=1e-4)
