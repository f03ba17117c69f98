"""TRIME over ranks, one real device each, against arrays of the released code.

``python -m tests.multi_device.test_trime IN OUT`` is the process with the devices.
"""

import os
import pathlib
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlm_jax.ops import vocabulary
from tests.methods.test_trime_golden import assert_close, per_token, rank_batches

pytestmark = pytest.mark.multi

CASES = {
    "ext_own_on": False,
    "ext_own_off": False,
    "long_1doc": False,
    "long_2docs": False,
    "ext_own_on_flow": True,
}


@pytest.fixture(scope="module")
def found(golden, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    np.savez(folder / "in.npz", **golden("trime_multi_rank"))
    subprocess.run(
        [
            *(sys.executable, "-m", "tests.multi_device.test_trime"),
            *(folder / "in.npz", folder / "out.npz"),
        ],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "NPROC": "16"},
        cwd=pathlib.Path(__file__).parents[2],
        timeout=600,
        check=True,
    )
    with np.load(folder / "out.npz", allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("case", CASES)
def test_one_device_per_rank(golden, found, case):
    z = golden("trime_multi_rank")
    variant = case.removesuffix("_flow")
    assert_close(found[f"{case}_per_token"], z[f"{variant}_per_token"], 1e-5)
    if CASES[case]:
        assert_close(found[f"{case}_grad_reps"], z[f"{case}_grad_reps"], 1e-4)
        return
    for name in ("x", "reps", "E"):
        assert_close(found[f"{case}_grad_{name}"], z[f"{case}_grad_{name}"], 1e-4)


def main() -> None:
    with np.load(sys.argv[1], allow_pickle=False) as arrays:
        z = dict(arrays)
    ranks = len(z["targets"])
    jax.config.update("jax_num_cpu_devices", ranks)
    assert jax.device_count() == ranks
    x, reps, embedding = (np.float32(z[name]) for name in ("x", "reps", "E"))
    out = {}
    for case, remote in CASES.items():
        variant = case.removesuffix("_flow")
        batches = rank_batches(variant, jnp.asarray(z["targets"], jnp.int32))

        def loss(x, reps, embedding, batch, variant, remote):
            scores = vocabulary.softmax_scores(x, embedding, batch["targets"])
            tokens = per_token(variant, scores, reps, batch, "rank", remote)
            return tokens.sum(), tokens

        step = jax.grad(
            partial(loss, variant=variant, remote=remote), (0, 1, 2), has_aux=True
        )
        on_devices = jax.pmap(step, axis_name="rank", in_axes=(0, 0, None, 0))
        grads, tokens = jax.device_get(on_devices(x, reps, embedding, batches))
        out[f"{case}_per_token"] = tokens
        for name, grad in zip(("x", "reps", "E"), grads, strict=True):
            out[f"{case}_grad_{name}"] = grad
    np.savez(sys.argv[2], **out)


if __name__ == "__main__":
    main()
