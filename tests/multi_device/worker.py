"""One process of several devices: every case on all devices and on one.

``python -m tests.multi_device.worker OUT DEVICES [COORDINATOR PROCESSES PROCESS]``
writes OUT.npz: ``case/all/...`` and ``case/one/...`` hold the same quantities, which
the tests compare; of several processes each does its share of the latter. SGD(1.0)
moves the parameters by the gradient itself, where Adam would hide a wrong scale.
"""

import functools
import pathlib
import sys

import jax
import numpy as np
import optax

from rlm_jax import processes
from rlm_jax.errors import UserError
from rlm_jax.train import checkpoint, loop, parallel
from rlm_jax.train import step as step_lib
from tests.multi_device import cases
from tests.train import toy

SGD = optax.sgd(1.0)


def gradients(name: str, on_one: bool) -> dict[str, np.ndarray]:
    """Sums and gradients of one step, and of the evaluation; on one device too."""
    method, batch = cases.CASES[name]()
    params = jax.tree.map(np.array, method.init(jax.random.key(0)))
    train = functools.partial(step_lib.train_step, method=method, optimizer=SGD, seed=0)
    evaluate = functools.partial(step_lib.eval_step, method=method)
    rows = parallel.local_rows(cases.ROWS)
    local = {key: x[rows] for key, x in batch.items()}
    replicated = parallel.replicate(params)
    start = step_lib.init(params, SGD, moving=method.moving)
    state = parallel.replicate(start)
    results = {
        "all": (
            *parallel.parallelise(train)(state, local),
            parallel.parallelise(evaluate, donate=False)(replicated, local),
        ),
    }
    if on_one:
        results["one"] = (
            *jax.jit(train)(start, batch),
            jax.jit(evaluate)(params, batch),
        )
    arrays = {}
    for way, (new, sums, evaluated) in results.items():
        gradient = jax.tree.map(np.subtract, params, jax.device_get(new.params))
        tree = {"gradient": gradient, "sums": sums, "evaluated": evaluated}
        tree["moving"] = new.moving
        for path, x in jax.tree_util.tree_leaves_with_path(tree):
            leaf = jax.tree_util.keystr(path, simple=True, separator="/")
            arrays[f"{name}/{way}/{leaf}"] = np.asarray(x)
    return arrays


def trained(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """Six steps, saved after the fourth and resumed, and six in one go."""
    rows = parallel.local_rows(8)

    def batch_at(step):
        return {key: x[rows] for key, x in toy.batch_at(step).items()}

    def train(name, steps):
        return loop.train(
            toy.method(dropout=0.2),
            optax.adam(0.01),
            batch_at,
            config=loop.TrainConfig(steps=steps, log_every=2),
            workdir=workdir / name,
        )

    train("resumed", 4)
    states = {"resumed": train("resumed", 6), "straight": train("straight", 6)}
    arrays = {f"loop/{k}": np.asarray(s.params["embed"]) for k, s in states.items()}
    saved = checkpoint.load_params(workdir / "straight")["embed"]
    return arrays | {"loop/saved": saved}


def refused() -> str:
    """What is told where the first process fails."""

    def fails():
        raise UserError("the disk is full")

    try:
        processes.by_first(fails, "write")
    except UserError as error:
        return str(error)
    return ""


def main() -> None:
    out, devices = sys.argv[1], int(sys.argv[2])
    jax.config.update("jax_num_cpu_devices", devices)
    count = 1
    if len(sys.argv) > 3:
        count = int(sys.argv[4])
        processes.initialise(sys.argv[3], count, int(sys.argv[5]))
    assert jax.device_count() == devices * count
    arrays = {}
    for number, name in enumerate(cases.CASES):
        arrays |= gradients(name, number % count == jax.process_index())
    arrays |= trained(pathlib.Path(out).parent / "runs")
    arrays["refused"] = np.array(refused())
    np.savez(out, **arrays)


if __name__ == "__main__":
    main()
