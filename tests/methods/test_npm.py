"""NPM against the released code's arrays and loops in float64."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlm_jax.errors import UserError
from rlm_jax.methods import npm
from tests.methods import systems


def sums_of(queries, slots, batch, unit: Any = "phrase", axis=None):
    """The method over given hidden states."""

    def states(params, rows, *, key=None):
        return queries if rows["ids"] is batch["masked_ids"] else slots

    method = npm.masked(npm.NPMConfig(unit=unit), None, states)
    return method.evaluate(None, batch, axis=axis)


def phrase_batch(z, labels, index=()):
    """The golden arrays of one rank as a batch; every size is the arrays' own."""
    ids, masked = z["input_ids"][index], z["masked_input_ids"][index]
    label_mask = z["label_mask"][index]
    counts = label_mask.sum(1) // 2
    rows, most = len(ids), int(counts.max())
    at = np.zeros((rows, most), np.int32)
    spans = np.full((rows, most, labels.shape[1]), -1, np.int32)
    span_mask = np.zeros((rows, most), np.float32)
    left = iter(labels)
    for row in range(rows):
        at[row, : counts[row]] = np.flatnonzero(label_mask[row])[::2]
        span_mask[row, : counts[row]] = 1
        for place in range(counts[row]):
            spans[row, place] = next(left)
    spans[spans == 0] = -1
    return {
        "ids": jnp.int32(ids),
        "mask": jnp.int32(z["attention_mask"][index]),
        "masked_ids": jnp.int32(masked),
        "masked_mask": jnp.int32(z["masked_attention_mask"][index]),
        "at": jnp.int32(at),
        "spans": jnp.int32(spans),
        "span_mask": jnp.float32(span_mask),
        "weight": jnp.ones(rows),
    }


@functools.partial(jax.jit, static_argnums=3)
def gradients(queries, slots, batch, unit):
    """((mean loss, sums), gradients of the mean)."""

    def mean(queries, slots):
        sums = sums_of(queries, slots, batch, unit)
        return sums["loss"][0] / sums["loss"][1], sums

    return jax.value_and_grad(mean, (0, 1), has_aux=True)(queries, slots)


def test_phrases_of_released_code(golden):
    z = golden("npm_phrase")
    batch = phrase_batch(z, z["labels"])
    hidden = (jnp.float32(z[name]) for name in ("query_hidden", "ctx_hidden"))
    (loss, sums), (of_queries, of_slots) = gradients(*hidden, batch, "phrase")
    assert_close(loss, z["loss"])
    for name in ("start", "end"):
        assert_close(sums[f"{name}_loss"][0], z[f"nll_{name}"].sum())
        assert sums[f"{name}_loss"][1] == len(z["labels"])
    assert_close(of_queries, z["grad_query"])
    assert_close(of_slots, z["grad_ctx"])


def test_each_span_of_released_code(golden):
    z = golden("npm_phrase")
    batch = phrase_batch(z, z["labels"])
    kept = np.asarray(batch["span_mask"]).reshape(-1) > 0

    @jax.jit
    def both(queries, slots):
        return [
            npm.span_log_sums(npm.NPMConfig(), queries, slots, batch, None, end=end)
            for end in (False, True)
        ]

    hidden = (jnp.float32(z[name]) for name in ("query_hidden", "ctx_hidden"))
    for name, sums in zip(("start", "end"), both(*hidden), strict=True):
        assert_close((sums.all - sums.positive)[kept], z[f"nll_{name}"])


def test_single_tokens_of_released_code(golden):
    z = golden("npm_single")
    places = [np.flatnonzero(row) for row in z["label_mask"]]
    rows, most = len(places), max(map(len, places))
    at, span_mask = np.zeros((rows, most), np.int32), np.zeros((rows, most), "f")
    for row, own in enumerate(places):
        at[row, : len(own)], span_mask[row, : len(own)] = own, 1
    batch = {
        "ids": jnp.int32(z["input_ids"]),
        "mask": jnp.int32(z["attention_mask"]),
        "masked_ids": jnp.int32(z["masked_input_ids"]),
        "masked_mask": jnp.int32(z["attention_mask"]),
        "at": jnp.int32(at),
        "spans": jnp.int32(np.take_along_axis(z["input_ids"], at, 1))[..., None],
        "span_mask": jnp.float32(span_mask),
        "weight": jnp.ones(rows),
    }
    hidden = (jnp.float32(z[name]) for name in ("query_hidden", "ctx_hidden"))
    (loss, sums), (of_queries, of_slots) = gradients(*hidden, batch, "token")
    assert sums["loss"][1] == len(z["nll"])  # the token that no other row has is out
    assert sums["found"] == (len(z["nll"]), z["label_mask"].sum())
    assert_close(loss, z["loss"])
    assert_close(sums["loss"][0], z["nll"].sum())
    assert_close(of_queries, z["grad_query"])
    assert_close(of_slots, z["grad_ctx"])


def test_two_ranks_of_released_code(golden):
    """The gradient of the sum of the ranks' means, to the slots of both."""
    z = golden("npm_two_ranks")
    ranks = len(z["loss"])
    batches = [phrase_batch(z, z[f"labels_{r}"], r) for r in range(ranks)]
    most = max(x["at"].shape[1] for x in batches)
    for x in batches:
        more = [(0, 0), (0, most - x["at"].shape[1])]
        for name in ("at", "span_mask"):
            x[name] = jnp.pad(x[name], more)
        x["spans"] = jnp.pad(x["spans"], [*more, (0, 0)], constant_values=-1)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *batches)

    def total(queries, slots):
        def of_rank(queries, slots, batch):
            sums = sums_of(queries, slots, batch, axis="rank")
            return sums["loss"][0] / sums["loss"][1]

        means = jax.vmap(of_rank, axis_name="rank")(queries, slots, stacked)
        return means.sum(), means

    hidden = (jnp.float32(z[name]) for name in ("query_hidden", "ctx_hidden"))
    gradient = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))
    (_, means), (of_queries, of_slots) = gradient(*hidden)
    assert_close(means, z["loss"])
    assert_close(of_queries, z["grad_query"])
    assert_close(of_slots, z["grad_ctx"])


@pytest.mark.parametrize("unit", ["phrase", "token"])
def test_loop_in_float64(unit):
    """Padding, a row of weight 0, and a span that no other sequence holds."""
    random, ends = np.random.default_rng(0), unit == "phrase"
    rows, length, width, longest = 4, 9, 5, 3 if ends else 1
    ids = random.integers(2, 5, (rows, length))
    mask = np.ones((rows, length), int)
    mask[1, 6:] = 0
    ids[0, 2] = 7  # nowhere else
    weight = np.array([1, 1, 0, 1.0])
    queries = random.normal(size=(rows, length, width))
    slots = random.normal(size=(rows, length, width))
    spans = np.full((rows, 3, longest), -1)
    for row in range(rows):
        for place, n in enumerate((1, min(2, longest), longest)):
            start = 2 if row == 0 and place == 0 else random.integers(0, 4)
            spans[row, place, :n] = ids[row, start : start + n]
    at = random.integers(0, length - 1, (rows, 3))
    span_mask = np.ones((rows, 3))
    span_mask[3, 1] = 0
    total, count, shown = 0.0, 0, 0
    for row in range(rows):
        for place in range(3):
            if not (weight[row] and span_mask[row, place]):
                continue
            shown += 1
            span = [token for token in spans[row, place] if token >= 0]
            lines = []
            for end in range(1 + ends):
                scores, positive = [], []
                for other in range(rows):
                    if other == row or not weight[other]:
                        continue
                    text = list(ids[other, : mask[other].sum()])
                    for j in range(len(text)):
                        s = queries[row, at[row, place] + end] @ slots[other, j]
                        scores.append(s / np.sqrt(width))
                        first = j - len(span) + 1 if end else j
                        if first >= 0 and text[first : first + len(span)] == span:
                            positive.append(scores[-1])
                if positive:
                    lines.append(np.log(np.exp(scores).sum() / np.exp(positive).sum()))
            if lines:
                total, count = total + sum(lines), count + 1
    assert 0 < count < shown
    batch = {
        **{n: jnp.int32(x) for n, x in (("ids", ids), ("mask", mask), ("at", at))},
        "masked_ids": jnp.int32(ids + 0),
        "masked_mask": jnp.int32(mask),
        "spans": jnp.int32(spans),
        "span_mask": jnp.float32(span_mask),
        "weight": jnp.float32(weight),
    }
    hidden = jnp.float32(queries), jnp.float32(slots)
    sums = jax.jit(sums_of, static_argnums=3)(*hidden, batch, unit)
    assert_close(sums["loss"][0], total)
    assert (sums["loss"][1], sums["found"]) == (count, (count, shown))


def test_an_unknown_unit():
    unit: Any = "word"
    with pytest.raises(UserError, match="unit is 'word'; choose one of phrase, token"):
        npm.npm(dataclasses.replace(systems.config("npm"), unit=unit))


def assert_close(ours, theirs, tolerance=1e-5):
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=tolerance, atol=tolerance)
