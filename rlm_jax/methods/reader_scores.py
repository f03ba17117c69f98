"""What a Fusion-in-Decoder reader says of each passage that it reads.

The teachers of `methods.atlas`, as functions of a reader, its parameters and its batch;
`ops.reader_signals` makes scores of them. All are without dropout. `fid.relevance`,
FiD-KD's teacher, is another.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float32

from rlm_jax.method import Batch, Params
from rlm_jax.methods import fid
from rlm_jax.models.reader import Memory, Reader
from rlm_jax.ops import mixtures, reader_signals


def alone(
    functions: Reader, params: Params, batch: Batch, *, temperature: float = 1.0
) -> Float32[jax.Array, "B K L"]:
    """log p(y_t | q, d_i, y_{<t}), each passage read alone.

    Args:
      temperature: of the vocabulary; see `reader_signals.sharpened`.
    """
    rows, number, _ = batch["passage_ids"].shape
    memory = fid.read(functions, params, batch)

    def each(x):
        return x.reshape(rows * number, -1, *x.shape[2:])

    states, mask, tokens = map(each, (memory.states, memory.mask, memory.tokens))
    first = memory.first[: tokens.shape[1]]
    targets = jnp.repeat(batch["targets"], number, axis=0)
    single = Memory(states, mask, tokens, first)
    if temperature == 1.0:
        log_p = -functions.nll(params, single, targets)
    else:
        every = functions.log_probs(params, single, targets)
        every = reader_signals.sharpened(every, temperature)
        log_p = jnp.take_along_axis(every, targets[..., None], axis=-1)[..., 0]
    return log_p.reshape(rows, number, -1)


def left_out(
    functions: Reader, params: Params, batch: Batch
) -> Float32[jax.Array, "B K L"]:
    """-log p(y_t | q, all passages but d_i, y_{<t}); one passage after another."""
    number = batch["passage_ids"].shape[1]
    memory = fid.read(functions, params, batch)
    of_passage = jnp.arange(memory.mask.shape[1]) // (memory.mask.shape[1] // number)

    def without(passage):
        mask = jnp.where(of_passage == passage, 0, memory.mask)
        return functions.nll(params, memory._replace(mask=mask), batch["targets"])

    return jnp.moveaxis(jax.lax.map(without, jnp.arange(number)), 0, 1)


def attended(
    functions: Reader, params: Params, batch: Batch
) -> Float32[jax.Array, "B K"]:
    """`reader_signals.attention_mass` of the decoder that writes y."""
    memory = fid.read(functions, params, batch)
    seen = functions.attention(params, memory, batch["targets"])
    return reader_signals.attention_mass(
        *seen,
        memory.mask,
        batch["target_mask"],
        passages=batch["passage_ids"].shape[1],
    )


def of_subsets(
    functions: Reader, params: Params, batch: Batch
) -> Float32[jax.Array, "B S"]:
    """log p(y | q, the passages of S), the sum over y's tokens, of all S = 2^K subsets.

    Bit i of a place says whether passage i is read. The passages are encoded once.
    """
    number = batch["passage_ids"].shape[1]
    memory = fid.read(functions, params, batch)
    of_passage = jnp.arange(memory.mask.shape[1]) // (memory.mask.shape[1] // number)

    def likelihood(subset):
        mask = jnp.where(subset >> of_passage & 1, memory.mask, 0)
        nll = functions.nll(params, memory._replace(mask=mask), batch["targets"])
        return reader_signals.total_log_prob(-nll, batch["target_mask"])

    return jax.lax.map(likelihood, jnp.arange(1 << number)).T


def side_by_side(
    functions: Reader, params: Params, batch: Batch
) -> dict[str, Float32[jax.Array, "B K"]]:
    """What the reader says of each passage by every signal there is; larger is better.

    pdist and loop are means over y's tokens, emdr2 the posterior of passages that weigh
    alike, adist and fid_attention where the decoder looks. A batch holds ``present``,
    bool [B, K], beside what the reader's does (`methods.fid`).
    """
    mask, present = batch["target_mask"], batch["present"].astype(bool)
    each = alone(functions, params, batch)
    without = left_out(functions, params, batch)
    wide = jnp.broadcast_to(mask[:, None], each.shape)
    equal = mixtures.log_weights(jnp.zeros(present.shape), present)
    return {
        "pdist": reader_signals.mean_log_prob(each, wide),
        "emdr2": reader_signals.posterior(equal, each, mask),
        "loop": reader_signals.mean_log_prob(without, wide),
        "adist": attended(functions, params, batch),
        "fid_attention": fid.relevance(functions, params, batch),
    }


def changes(
    functions: Reader, params: Params, batch: Batch
) -> dict[str, Float32[jax.Array, "B K"]]:
    """What each passage does to log p(y | q), in nats.

    ``added``: read alone, over nothing read; ``removed``: what is lost of all without
    it; ``average``: `reader_signals.average_change`.
    """
    number = batch["passage_ids"].shape[1]
    every = of_subsets(functions, params, batch)
    one = 1 << jnp.arange(number)
    return {
        "added": every[:, one] - every[:, :1],
        "removed": every[:, -1:] - every[:, (1 << number) - 1 - one],
        "average": reader_signals.average_change(every, number),
    }
