"""Attention of many heads to the keys and values of as many or fewer.

Grouped-query attention (Ainslie et al. 2023): head h of the queries goes with head
h // (H / G) of the keys, which are not repeated for it.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from rlm_jax.ops import Array

BLOCK, MOST_BLOCKS = 128, 4
"""Queries of a block, and how many blocks there are: each is compiled by itself."""


def attend_causally(
    q: Float[Array, "B T H d"], k: Float[Array, "B T G d"], v: Float[Array, "B T G d"]
) -> Float[jax.Array, "B T H d"]:
    """Each token attends to itself and to those before it.

        out_t = sum_{s <= t} a_ts v_s,  a_t = softmax_{s <= t}(q_t . k_s / sqrt(d))

    Queries come in blocks. What stands after a block costs no product, and the logits
    of a block stay in a processor's cache.

    Args:
      q, k, v: of the same T tokens.

    Returns:
      Of the dtype of v; the softmax is float32.
    """
    length = q.shape[1]
    size = max(BLOCK, -(-length // MOST_BLOCKS))
    keys, values = (x.swapaxes(1, 2) for x in (k, v))
    blocks = []
    for start in range(0, length, size):
        stop = min(start + size, length)
        before = np.arange(stop) <= np.arange(start, stop)[:, None]
        blocks.append(
            attend_to_slots(
                q[:, start:stop], keys[:, :, :stop], values[:, :, :stop], before[None]
            )
        )
    return jnp.concatenate(blocks, axis=1)


def attend_to_slots(
    q: Float[Array, "B T H d"],
    keys: Float[Array, "B G S d"],
    values: Float[Array, "B G S d"],
    visible: Bool[Array, "#B T S"],
) -> Float[jax.Array, "B T H d"]:
    """softmax(q . k / sqrt(d)) v over the visible slots of a cache.

    Args:
      q: queries.
      keys, values: of S slots.
      visible: the slots that each query attends to.

    Returns:
      Of the dtype of ``values``; the softmax is float32.
    """
    batch, length, num_heads, d = q.shape
    num_kv_heads = keys.shape[1]
    # Heads first, as the keys have them: the products then move nothing.
    groups = q.reshape(batch, length, num_kv_heads, -1, d).transpose(0, 2, 3, 1, 4)
    logits = jnp.einsum(
        "bkgtd,bksd->bkgts", groups, keys, preferred_element_type=jnp.float32
    )
    # Not -inf: a row of padding may see nothing at all, and stays finite.
    hidden = jnp.finfo(jnp.float32).min
    logits = jnp.where(jnp.asarray(visible)[:, None, None], logits * d**-0.5, hidden)
    share = jax.nn.softmax(logits).astype(values.dtype)
    out = jnp.einsum(
        "bkgts,bksd->bkgtd", share, values, preferred_element_type=jnp.float32
    ).astype(values.dtype)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, length, num_heads, d)
