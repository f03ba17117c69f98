"""DPR over ranks, one real device each, against arrays of the released code.

``python -m tests.multi_device.test_dpr IN OUT`` is the process with the devices.
"""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from rlm_jax.ops import collectives
from tests.methods.test_dpr import assert_close, own_gradients, sums_of

pytestmark = pytest.mark.multi


def test_one_device_per_rank(golden, tmp_path):
    """See `tests.methods.test_dpr.test_released_code_on_ranks` for the scale."""
    z = golden("dpr_nll")
    np.savez(tmp_path / "in.npz", **z)
    subprocess.run(
        [
            *(sys.executable, "-m", "tests.multi_device.test_dpr"),
            *(tmp_path / "in.npz", tmp_path / "out.npz"),
        ],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "NPROC": "16"},
        cwd=pathlib.Path(__file__).parents[2],
        timeout=600,
        check=True,
    )
    with np.load(tmp_path / "out.npz", allow_pickle=False) as arrays:
        found = dict(arrays)
    for way in ("remote", "own"):
        assert_close(found[f"{way}_loss"], z["ddp_loss"])
        assert_close(found[f"{way}_grad_q"], z["ddp_grad_q"])
    assert_close(found["remote_grad_ctx"], z["ddp_grad_ctx"])
    own = own_gradients(z["ddp_q"], z["ddp_ctx"])
    assert_close(found["own_grad_ctx"], own / z["ddp_q"][..., 0].size)


def main() -> None:
    with np.load(sys.argv[1], allow_pickle=False) as arrays:
        questions, passages = arrays["ddp_q"], arrays["ddp_ctx"]
    ranks, rows = questions.shape[:2]
    jax.config.update("jax_num_cpu_devices", ranks)
    assert jax.device_count() == ranks
    out = {}
    for way in ("remote", "own"):

        def step(questions, passages, way=way):
            def loss(questions, passages):
                return sums_of(questions, passages, "rank", way == "remote")

            gradient, sums = jax.grad(loss, (0, 1), has_aux=True)(questions, passages)
            total, weight = collectives.total(sums["loss"], "rank")
            return jax.tree.map(lambda g: g / weight, gradient), total / weight

        mapped = jax.pmap(step, axis_name="rank")
        gradient, mean = mapped(np.float32(questions), np.float32(passages))
        out[f"{way}_loss"] = mean
        out[f"{way}_grad_q"], out[f"{way}_grad_ctx"] = gradient
    np.savez(sys.argv[2], **out)


if __name__ == "__main__":
    main()
