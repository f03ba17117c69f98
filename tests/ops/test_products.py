"""The product of a layer and its gradients, against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlm_jax.ops.products import product

SHAPES = {"one row": (5,), "rows": (3, 5), "rows of rows": (2, 3, 5)}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_value_and_both_gradients(shape: tuple[int, ...]):
    random = np.random.default_rng(0)
    x, weights = random.standard_normal(shape), random.standard_normal((5, 4))
    gradient = random.standard_normal((*shape[:-1], 4))
    single = [y.astype(np.float32) for y in (x, weights, gradient)]
    value, pullback = jax.vjp(product, *single[:2])
    of_x, of_weights = pullback(jnp.asarray(single[2]))
    np.testing.assert_allclose(value, x @ weights, atol=1e-5)
    np.testing.assert_allclose(of_x, gradient @ weights.T, atol=1e-5)
    np.testing.assert_allclose(
        of_weights, x.reshape(-1, 5).T @ gradient.reshape(-1, 4), atol=1e-5
    )


def test_sums_of_bfloat16_are_not_rounded_before_their_end():
    # Beside 256, bfloat16 cannot hold another 1.
    x, weights = jnp.ones((1, 512), jnp.bfloat16), jnp.ones((512, 1), jnp.bfloat16)
    assert product(x, weights).dtype == jnp.bfloat16
    assert float(product(x, weights)[0, 0]) == 512
    many = jnp.ones((512, 1), jnp.bfloat16)
    gradient = jax.grad(lambda w: product(many, w).astype(jnp.float32).sum())(
        jnp.ones((1, 1), jnp.bfloat16)
    )
    assert gradient.dtype == jnp.bfloat16 and float(gradient[0, 0]) == 512


@pytest.mark.parametrize("function, transposes", [(product, 0), (jnp.matmul, 1)])
def test_the_gradient_of_the_weights_is_not_transposed(function, transposes: int):
    gradient = jax.jit(jax.grad(lambda w, x: jnp.sum(function(x, w) ** 2)))
    lowered = gradient.lower(jnp.ones((4, 8)), jnp.ones((2, 3, 4))).as_text()
    assert lowered.count("stablehlo.transpose") == transposes
