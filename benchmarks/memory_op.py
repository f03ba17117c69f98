"""The blockwise log-sum-exp pair against the plain one that holds all logits.

    python -m benchmarks.memory_op

Queries [N, D] against a memory of [M, D], forward and backward, on a CPU. Every slot
but the later ones of a query's own segment is visible (the memory of TRIME_ext), so
hardly a tile can be skipped, and each query has positives. Memory is told twice: what
XLA plans beside inputs and outputs, and by how much the resident memory of a fresh
process peaks above its inputs, with the outputs taken off.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import record
from rlm_jax.ops import memory

WIDTH, SEGMENT, NUM_VALUES = 256, 512, 64


def visible(query, slot):
    return (slot["segment"] != query["segment"]) | (
        slot["position"] < query["position"]
    )


def positive(query, slot):
    return slot["value"] == query["value"]


def plain(queries, keys, query_ids, key_ids) -> memory.LogSums:
    """The pair over an array of logits [N, M], as one writes it first."""
    logits = queries @ keys.T * WIDTH**-0.5
    rows = {name: x[:, None] for name, x in query_ids.items()}
    columns = {name: x[None, :] for name, x in key_ids.items()}
    seen = visible(rows, columns)
    both = seen & positive(rows, columns)
    return memory.LogSums(
        *(
            jax.nn.logsumexp(jnp.where(mask, logits, -jnp.inf), axis=1)
            for mask in (seen, both)
        )
    )


def blockwise(queries, keys, query_ids, key_ids) -> memory.LogSums:
    return memory.log_sums(
        queries, keys, query_ids, key_ids,
        visible=visible, positive=positive, scale=WIDTH**-0.5,
    )  # fmt: skip


VERSIONS = {"blockwise": blockwise, "plain": plain}


@functools.cache
def inputs(num_queries: int, num_slots: int):
    rng = np.random.default_rng(0)

    def ids(num, first):
        position = np.arange(first, first + num, dtype=np.int32)
        value = rng.permutation(num).astype(np.int32) % NUM_VALUES
        segment = position // SEGMENT
        return {"position": position, "segment": segment, "value": value}

    def states(num):
        return rng.standard_normal((num, WIDTH), np.float32)

    # The queries are the last segments of the memory.
    query_ids = ids(num_queries, num_slots - num_queries)
    arrays = states(num_queries), states(num_slots), query_ids, ids(num_slots, 0)
    return jax.block_until_ready(jax.device_put(arrays))


def compiled(name: str, sizes: tuple[int, int], gradients: str):
    """The compiled (sums, gradients) of one version and its arguments."""
    arguments = inputs(*sizes)

    def loss(*arguments):
        sums = VERSIONS[name](*arguments)
        return (sums.all - sums.positive).mean(), sums

    wanted = (0, 1) if gradients == "queries and keys" else (0,)
    function = jax.jit(jax.value_and_grad(loss, wanted, has_aux=True))
    return function.lower(*arguments).compile(), arguments


def added(
    name: str, num_queries: int, num_slots: int, gradients: str
) -> dict[str, float]:
    """Memory of one version in this process, in MB; inputs and outputs not counted."""
    function, arguments = compiled(name, (num_queries, num_slots), gradients)
    plan = function.memory_analysis()
    assert plan is not None, "this backend plans no memory"
    outputs = plan.output_size_in_bytes / 1e6
    start = record.start_of_memory()
    jax.block_until_ready(function(*arguments))
    peak = record.added_memory(start)
    return {
        "planned_mb": round(plan.temp_size_in_bytes / 1e6, 2),
        "measured_mb": round(max(peak - outputs, 0.0), 2),
        "outputs_mb": round(outputs, 2),
        "inputs_mb": round(plan.argument_size_in_bytes / 1e6, 2),
    }


def measure(quick: bool) -> dict:
    size = 1024 if quick else 16_384
    large = (256, 8192) if quick else (4096, 1_048_576)
    rounds = 2 if quick else 5
    used = {
        name: record.in_fresh_process(
            "benchmarks.memory_op", "added", name, size, size, "queries and keys"
        )
        for name in VERSIONS
    }
    in_one_process = {
        n: compiled(n, (size, size), "queries and keys") for n in VERSIONS
    }
    outputs = {name: f(*arguments) for name, (f, arguments) in in_one_process.items()}
    difference = jax.tree.map(
        lambda x, y: float(jnp.abs(x - y).max() / jnp.abs(y).max()), *outputs.values()
    )
    del outputs
    time = record.interleaved(
        {
            name: record.timed(functools.partial(f, *arguments))
            for name, (f, arguments) in in_one_process.items()
        },
        rounds,
    )
    at_scale = {
        gradients: record.in_fresh_process(
            "benchmarks.memory_op", "added", "blockwise", *large, gradients
        )
        for gradients in ("queries and keys", "queries")
    }
    planned, measured = (
        used["blockwise"][kind] / used["plain"][kind]
        for kind in ("planned_mb", "measured_mb")
    )
    most = max(max(x["planned_mb"], x["measured_mb"]) for x in at_scale.values())
    return {
        "sizes": {"N": size, "M": size, "D": WIDTH},
        "large_sizes": {"N": large[0], "M": large[1], "D": WIDTH},
        "claims": {
            "planned memory, blockwise / plain": record.claim(planned, at_most=0.1),
            "measured memory, blockwise / plain": record.claim(measured, at_most=0.1),
            "time, blockwise / plain": record.claim(
                time["ratio"]["median"], at_most=1.0
            ),
            "memory added at the large sizes, MB": record.claim(most, at_most=500),
        },
        "largest_relative_difference": max(jax.tree.leaves(difference)),
        "memory": used,
        "time": time,
        "large": at_scale,
    }


if __name__ == "__main__":
    record.main("memory_op", measure)
