"""Sums and weights, and the joint cross-entropy."""

import jax
import numpy as np
import pytest

from rlm_jax.ops import losses
from rlm_jax.ops.memory import LogSums


def test_weighted_is_a_sum_and_a_weight():
    values = np.array([[1, 2], [4, 8]], np.float32)
    mask = np.array([[1, 0], [0.5, 1]], np.float32)
    total, weight = losses.weighted(values, mask)
    assert (float(total), float(weight)) == (11.0, 2.5)
    assert total.shape == weight.shape == ()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_masked_may_be_anything(bad):
    values = np.array([1, bad], np.float32)
    mask = np.array([True, False])
    total, weight = losses.weighted(values, mask)
    assert (float(total), float(weight)) == (1.0, 1.0)
    gradient = jax.grad(lambda v: losses.weighted(v, mask)[0])(values)
    np.testing.assert_array_equal(gradient, [1, 0])


def test_an_empty_mask_has_weight_zero():
    total, weight = losses.weighted(np.ones(3, np.float32), np.zeros(3, np.float32))
    assert (float(total), float(weight)) == (0.0, 0.0)


def test_joint_nll_is_one_softmax_over_vocabulary_and_memory():
    random = np.random.default_rng(0)
    words, slots = random.normal(size=7), random.normal(size=5)
    hits = np.array([0, 1, 0, 0, 1], bool)
    target = 3

    def log_sum(x):
        return np.asarray(np.log(np.exp(x).sum()), np.float32)

    sums = LogSums(log_sum(slots), log_sum(slots[hits]))
    score = np.asarray(words[target], np.float32)
    got = losses.joint_nll(score, log_sum(words), sums)
    numerator = np.exp(words[target]) + np.exp(slots[hits]).sum()
    denominator = np.exp(words).sum() + np.exp(slots).sum()
    assert got == pytest.approx(-np.log(numerator / denominator), rel=1e-5)


def test_joint_nll_without_a_memory_is_the_cross_entropy():
    empty = np.array([-np.inf], np.float32)
    score, normaliser = np.array([[-1.5], [2.25]], np.float32)

    def nll(score, normaliser, memory):
        return losses.joint_nll(score, normaliser, LogSums(memory, memory)).sum()

    got, gradients = jax.value_and_grad(nll, (0, 1, 2))(score, normaliser, empty)
    assert float(got) == 3.75
    np.testing.assert_array_equal(np.ravel(gradients), [-1, 1, 0])
