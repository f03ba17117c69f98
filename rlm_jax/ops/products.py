"""Products of states and weights, whose gradients a CPU computes without a copy."""

from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Float

from rlm_jax.ops import Array


def product(
    x: Float[Array, "*B D"], weights: Float[Array, "D F"]
) -> Float[jax.Array, "*B F"]:
    """``x W``, in x's dtype with sums in float32.

    The gradient of the weights is ``x^T g`` over all rows. Differentiated by JAX it
    would be ``(g^T x)^T``, for which XLA's CPU compiler copies g into another order.
    """
    # `custom_vjp` hides what it returns from type checkers.
    return cast(Any, _product(x, weights))


@jax.custom_vjp
def _product(x, weights):
    return _sums(x, weights, x.ndim - 1, 0)


def _forward(x, weights):
    return _product(x, weights), (x, weights)


def _backward(kept, gradient):
    x, weights = kept
    rows, of_rows = (y.reshape(-1, y.shape[-1]) for y in (x, gradient))
    of_x = _sums(gradient, weights, gradient.ndim - 1, 1)
    return of_x, _sums(rows, of_rows, 0, 0)


_product.defvjp(_forward, _backward)


def _sums(x, y, x_axis, y_axis):
    """The product over these axes; on a CPU bfloat16 is fast only in this way."""
    sums = jax.lax.dot_general(
        x, y, (((x_axis,), (y_axis,)), ((), ())), preferred_element_type=jnp.float32
    )
    return sums.astype(x.dtype)
