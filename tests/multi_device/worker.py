"""One process of several devices: every case on all devices and on one.

``python -m tests.multi_device.worker OUT DEVICES [others]``
``python -m tests.multi_device.worker OUT DEVICES COORDINATOR PROCESSES PROCESS``
writes OUT.npz: ``case/all/...`` and ``case/one/...`` hold the same quantities, which
the tests compare; of several processes the first computes the latter. SGD(1.0) moves
the parameters by the gradient itself, where Adam would hide a wrong scale.

Beside OUT a single process finds the golden arrays ``dpr_nll.npz`` and
``trime_multi_rank.npz``, and computes them over ranks.
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
from tests.multi_device import cases, ranks
from tests.train import toy

SGD = optax.sgd(1.0)


def gradients(name: str, case: cases.Case, on_one: bool) -> dict[str, np.ndarray]:
    """Sums and gradients of one step, and of the evaluation; on one device too."""
    method, params, batch = case()
    train = functools.partial(step_lib.train_step, method=method, optimizer=SGD, seed=0)
    evaluate = functools.partial(step_lib.eval_step, method=method)

    def both(state, batch, *, axis=None):
        evaluated = evaluate(state.params, batch, axis=axis)
        return *train(state, batch, axis=axis), evaluated

    rows = parallel.local_rows(cases.ROWS)
    local = {key: x[rows] for key, x in batch.items()}
    start = step_lib.init(params, SGD, moving=method.moving)
    results = {"all": parallel.parallelise(both)(parallel.replicate(start), local)}
    if on_one:
        results["one"] = jax.jit(both)(start, batch)
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
    evaluate = functools.partial(step_lib.eval_step, method=toy.method())
    evaluate = parallel.parallelise(evaluate, donate=False)
    params = states["straight"].params
    sums = [evaluate(params, batch_at(6))["loss"] for _ in range(2)]
    return arrays | {"loop/saved": saved, "loop/evaluated": np.asarray(sums)}


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
    out, devices = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    jax.config.update("jax_num_cpu_devices", devices)
    count, tried = 1, cases.MECHANISMS | cases.REACHING
    only_others = sys.argv[3:] == ["others"]
    if only_others:
        tried = cases.OTHERS
    elif len(sys.argv) > 3:
        count, tried = int(sys.argv[4]), cases.MECHANISMS
        processes.initialise(sys.argv[3], count, int(sys.argv[5]))
    assert jax.device_count() == devices * count
    arrays = {}
    for name, case in tried.items():
        arrays |= gradients(name, case, jax.process_index() == 0)
    if only_others:
        np.savez(out, **arrays)
        return
    if count == 1:
        for name, compute in (
            ("dpr_nll", ranks.dpr),
            ("trime_multi_rank", ranks.trime),
        ):
            with np.load(out.with_name(f"{name}.npz"), allow_pickle=False) as golden:
                found = compute(dict(golden))
            arrays |= {f"{name}/{key}": x for key, x in found.items()}
    arrays |= trained(out.parent / "runs")
    arrays["refused"] = np.array(refused())
    np.savez(out, **arrays)


if __name__ == "__main__":
    main()
