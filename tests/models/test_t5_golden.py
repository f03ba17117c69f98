"""T5 against golden arrays of transformers, FiD and Atlas."""

import dataclasses
import os
import pathlib
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlm_jax import pretrained
from rlm_jax.models import t5
from rlm_jax.models.seq2seq import T5, seq2seq, shift_right

GOLDEN = pathlib.Path(
    os.environ.get("RLM_GOLDEN") or pathlib.Path(__file__).parents[1] / "golden"
)
NAMES = ("t5_v1_0", "t5_v1_1")
ATOL = 2e-4  # as tests/golden's own notes say of hf_t5_*


@cache
def loaded(name):
    return pretrained.load_t5(GOLDEN / "hf" / name)


def nll(logits, labels):
    """(the mean over real labels, that of each)."""
    real = labels >= 0
    log_p = jax.nn.log_softmax(logits)
    at = np.maximum(labels, 0)[..., None]
    each = -jnp.take_along_axis(log_p, at, axis=-1)[..., 0] * real
    return each.sum() / real.sum(), each


def close(found, expected, atol=ATOL):
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


def published(gradient):
    """Gradients under the published names that golden files have."""
    decoder = gradient["decoder"]
    kv = decoder["block_1"]["cross"]["kv"]["kernel"]
    told = {
        "shared.weight": gradient["embedding"],
        "decoder.final_layer_norm.weight": decoder["norm"]["scale"],
        "decoder.block.1.layer.1.EncDecAttention.q.weight": decoder["block_1"]["cross"][
            "q"
        ]["kernel"].T,
        "decoder.block.0.layer.1.EncDecAttention.k.weight": decoder["block_0"]["cross"][
            "kv"
        ]["kernel"][:, : kv.shape[1] // 2].T,
    }
    for stack in ("encoder", "decoder"):
        name = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        told[name] = gradient[stack]["relative_bias"]
    if "head" in gradient:
        told["lm_head.weight"] = gradient["head"].T
    return told


def gradients_agree(gradient, arrays, atol):
    told = published(gradient)
    names = [name for name in arrays if name.startswith("grad.")]
    assert names
    for name in names:
        close(told[name.removeprefix("grad.")], arrays[name], atol)


@pytest.mark.parametrize("name", NAMES)
def test_golden_logits_loss_states_and_gradients(golden, name):
    arrays = golden(f"hf_{name}")
    config, params = loaded(name)
    ids, mask, targets_in = (
        arrays[key].astype(np.int32)
        for key in ("input_ids", "attention_mask", "decoder_input_ids")
    )
    labels = arrays["labels"]
    assert (
        shift_right(np.maximum(labels, config.pad_id), config.start_id) == targets_in
    ).all()
    blocks = (t5.EncoderBlock, t5.DecoderBlock)

    @jax.jit
    def loss(params):
        logits, kept = T5(config).apply(
            {"params": params}, ids, mask, targets_in,
            capture_intermediates=lambda module, name: (
                name == "__call__" and isinstance(module, (*blocks, t5.T5Encoder))
            ),
        )  # fmt: skip
        value, each = nll(logits, labels)
        return value, (logits, each, kept["intermediates"])

    (value, (logits, each, kept)), gradient = jax.value_and_grad(loss, has_aux=True)(
        params
    )
    close(value, arrays["loss"], 1e-5)
    close(each, arrays["loss_per_token"])
    close(logits, arrays["logits"])
    real = mask > 0
    states = kept["encoder"]["__call__"][0]
    close(states[real], arrays["encoder_last_hidden_state"][real])
    for layer in range(config.num_layers - 1):
        found = kept["encoder"][f"block_{layer}"]["__call__"][0]
        expected = arrays["encoder_hidden_states"][layer + 1]
        close(found[real], expected[real])
    for layer in range(config.num_decoder_layers - 1):
        found = kept["decoder"][f"block_{layer}"]["__call__"][0][0]
        close(found, arrays["decoder_hidden_states"][layer + 1])
    gradients_agree(gradient, arrays, ATOL)


def read_passages(config, passage_ids, passage_mask):
    """Each passage alone, then one memory of all: Fusion-in-Decoder."""
    model = seq2seq(config)
    batch, number, length = passage_ids.shape

    def run(params, targets_in):
        flat = (batch * number, length)
        states = model.encode(
            params, passage_ids.reshape(flat), passage_mask.reshape(flat)
        )
        states = states.reshape(batch, number * length, -1)
        mask = passage_mask.reshape(batch, -1)
        decoded = model.decode(params, targets_in, states, mask, attention=True)
        return model.logits(params, decoded.hidden), decoded.attention, states

    return run


@pytest.mark.parametrize(
    "file, name, atol", [("fid_reader", "t5_v1_0", 1e-4),
                         ("fid_atlas_reader", "t5_v1_1", 5e-4)]
)  # fmt: skip
def test_golden_readers_of_passages(golden, file, name, atol):
    arrays = golden(file)
    config, params = loaded(name)
    ids, mask = (arrays[f"passage_{key}"].astype(np.int32) for key in ("ids", "mask"))
    labels = arrays["labels"]
    targets_in = shift_right(np.maximum(labels, config.pad_id), config.start_id)

    def loss(config):
        run = read_passages(config, ids, mask)

        def call(params):
            logits, attention, states = run(params, targets_in)
            value, each = nll(logits, labels)
            return value, (logits, each, attention, states)

        return call

    (value, (logits, each, attention, states)), gradient = jax.jit(
        jax.value_and_grad(loss(config), has_aux=True)
    )(params)
    close(value, arrays["loss"], 1e-4)
    close(each, arrays["loss_per_token"], atol)
    close(logits, arrays["logits"], atol)
    gradients_agree(gradient, arrays, 1e-4 if file == "fid_reader" else 2e-4)
    if "encoder_states" in arrays:
        real = mask.reshape(len(mask), -1) > 0
        close(states[real], arrays["encoder_states"][real])
    if "xattn_scores" in arrays:
        # Of the first target token, over layers, heads and a passage's tokens.
        scores = attention.scores[:, :, :, 0].mean((0, 2)).reshape(mask.shape)
        scores = (scores * mask).sum(-1) / mask.sum(-1)
        close(scores, arrays["xattn_scores"], 1e-4)
    if "legacy_cross_bias" in arrays:
        bias = arrays["legacy_cross_bias"].astype(np.float32)
        legacy = dataclasses.replace(config, legacy_cross_bias=True)
        run = jax.jit(read_passages(legacy, ids, mask))
        for table, expected in (
            (bias, "logits_legacy_bias"),
            (np.zeros_like(bias), "logits"),
        ):
            decoder = params["decoder"] | {"cross_bias": table}
            found = run(params | {"decoder": decoder}, targets_in)[0]
            close(found, arrays[expected], atol)
