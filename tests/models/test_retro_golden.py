"""RETRO against the rebuilds' arrays: what reads what, by gradients."""

from functools import cache
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

from tests.models.test_retro import WIDTH, Sizes, cross_attention, initialised, model


@cache
def jacobians(layers, sizes):
    """(tokens, neighbours, mask) -> how a random projection of each output's features
    moves with the embedded tokens, and with the embedded neighbours."""
    projection = np.random.default_rng(7).normal(size=WIDTH).astype(np.float32)
    params = initialised(layers, sizes=sizes)
    retro = model(layers, sizes=sizes)

    def outputs(shift, neighbour_shift, *args):
        def moved(next_function, args, kwargs, context):
            out = next_function(*args, **kwargs)
            if context.method_name != "embed":
                return out
            return out + (shift if args[0].ndim == 2 else neighbour_shift)

        with nn.intercept_methods(moved):
            out: Any = retro.apply({"params": params}, *args)
        return out.features[0] @ projection

    return jax.jit(jax.jacrev(outputs, argnums=(0, 1)))


def dependencies(layers, sizes, tokens, neighbours, mask):
    """(output t on neighbour token (u, k, i), output t on token s): bools."""
    zeros = (
        np.zeros((1, tokens.shape[1], WIDTH), np.float32),
        np.zeros((*neighbours.shape[1:], WIDTH), np.float32),
    )
    found = jacobians(layers, sizes)(*zeros, tokens, neighbours, mask)
    on_tokens, on_neighbours = (np.asarray(x) for x in found)
    assert np.isfinite(on_tokens).all() and np.isfinite(on_neighbours).all()
    on_tokens = on_tokens[:, 0]
    return (on_neighbours != 0).any(axis=-1), (on_tokens != 0).any(axis=-1)


# Matrices of neighbours and of tokens -> layers that have cross-attention (`meta`, in
# words). The second rebuild wants neighbours of a trailing partial chunk, so its rows
# are full.
GOLDEN = {
    "lucid_neighbours lucid_tokens": (2, 3),
    "lucid_padded_neighbours": (2, 3),
    "lucid_lastlayer_neighbours lucid_lastlayer_tokens": (3,),
    "norlund_neighbours norlund_tokens": (2, 3),
    "norlund_masked_neighbours": (2, 3),
}


def sizes_of(arrays):
    """The golden text's, and as many tokens as it and its neighbours name."""
    (_, length), (_, _, neighbours, width) = (
        arrays[name].shape for name in ("seq", "retrieved")
    )
    chunk = int(arrays["chunk_size"])
    assert width == 2 * chunk
    vocab = 1 + int(max(arrays["seq"].max(), arrays["retrieved"].max()))
    return Sizes(vocab, chunk, neighbours, length)


@pytest.mark.parametrize("names", GOLDEN)
def test_outputs_depend_on_what_they_do_in_the_rebuilds(golden, names):
    arrays = golden("retro_alignment")
    matrices = [arrays[name] for name in names.split()]
    length = len(matrices[0])
    # Chunks whose neighbours were all padding, or masked.
    absent = ~matrices[0].any(axis=0)
    assert absent.any() == ("padded" in names or "masked" in names)
    mask = np.ones(arrays["retrieved"].shape, np.float32)
    mask[:, absent] = 0
    found = dependencies(
        GOLDEN[names],
        sizes_of(arrays),
        np.int32(arrays["seq"][:, :length]),
        np.int32(arrays["retrieved"]),
        mask,
    )
    of_chunk = found[0].any(axis=(2, 3)), found[1]
    for matrix, wanted in zip(of_chunk, matrices, strict=False):
        np.testing.assert_array_equal(matrix, wanted)
    if names.startswith("lucid_neighbours"):
        every = found[0].all(axis=(2, 3))
        np.testing.assert_array_equal(every, arrays["lucid_all_of_chunk"])
    # Nothing depends on a later token, and everything on each earlier one.
    np.testing.assert_array_equal(found[1], np.tri(length, dtype=bool))


def test_chunked_cross_attention_reads_the_golden_window(golden):
    arrays = golden("retro_alignment")
    module, params, x, encoded, mask = cross_attention(sizes_of(arrays))

    def outputs(encoded):
        out = module.apply({"params": params}, x, encoded, mask, True)[0]
        return out @ np.arange(1.0, 1 + WIDTH)

    found = np.asarray(jax.jit(jax.jacrev(outputs))(encoded))
    found = (found != 0).any(axis=-1)
    wanted = arrays["lucid_cca_window"]
    np.testing.assert_array_equal(found.any(axis=(2, 3)), wanted)
    np.testing.assert_array_equal(found.all(axis=(2, 3)), wanted)
