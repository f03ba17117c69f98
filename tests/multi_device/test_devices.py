"""One device equals four, with SGD(1.0), in the sums and in every gradient."""

import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from tests.multi_device import cases, ranks

pytestmark = pytest.mark.multi


@pytest.fixture(scope="module")
def arrays(golden, tmp_path_factory):
    """Everything that this file looks at, from one process."""
    folder = tmp_path_factory.mktemp("devices")
    released = {name: golden(name) for name in ranks.GOLDEN}
    for name, z in released.items():
        np.savez(folder / f"{name}.npz", **z)
    devices = 4 if ranks.count(*released.values()) <= 4 else cases.ROWS
    return worked(folder / "out.npz", devices)


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """The same of systems whose losses leave the devices to the step."""
    return worked(tmp_path_factory.mktemp("devices") / "out.npz", 4, "others")


def worked(out: pathlib.Path, devices: int, *which: str) -> dict[str, np.ndarray]:
    subprocess.run(
        [
            *(sys.executable, "-m", "tests.multi_device.worker"),
            *(out, str(devices), *which),
        ],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "NPROC": "16"},
        cwd=pathlib.Path(__file__).parents[2],
        timeout=600,
        check=True,
    )
    with np.load(out, allow_pickle=False) as loaded:
        return dict(loaded)


@pytest.mark.parametrize("case", cases.MECHANISMS | cases.REACHING)
def test_several_devices_equal_one(arrays, case):
    assert_equal_on_one(arrays, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", cases.OTHERS)
def test_several_devices_equal_one_in_other_systems(others, case):
    assert_equal_on_one(others, case)


def assert_equal_on_one(arrays, case):
    on_one = [name for name in arrays if name.startswith(f"{case}/one/")]
    assert any("/gradient/" in name for name in on_one)
    for name in on_one:
        on_all = arrays[name.replace("/one/", "/all/")]
        cases.assert_close(on_all, arrays[name], name)
        # Counts may be none; the last biases of DPR's passages and of the reranker move
        # all scores of a question alike.
        none = r"/(rank|accuracy|agreement|exact)/0$|passage/.*feed_forward_norm/bias"
        none += r"|reranker/.*/(feed_forward_norm|projection)/bias"
        # RPT's keys move by a bias all alike, as do neighbours by the gate's here; what
        # is given is not retrieved.
        none += r"|rpt/.*/gate/bias"
        none += r"|rpt/.*/retriever/key/bias|rpt_given/.*/retriever/(query|key)"
        if not re.search(none, name):
            assert np.abs(arrays[name]).max() > floor_of(case, name), name


def floor_of(case: str, name: str) -> float:
    """What a gradient has to exceed; the tolerance is 1e-5."""
    if not case.startswith("rpt"):
        return 0.01
    # One number for a whole neighbour, or for its absence, moves little.
    return 0.0002 if re.search("/(gate|gate_norm|nothing)/", name) else 0.001


def test_the_loop_resumes_bit_for_bit(arrays):
    np.testing.assert_array_equal(arrays["loop/resumed"], arrays["loop/straight"])
    np.testing.assert_array_equal(arrays["loop/saved"], arrays["loop/straight"])
    first, second = arrays["loop/evaluated"]
    np.testing.assert_array_equal(first, second)  # parameters are not given away


def test_dpr_of_released_code_on_ranks(arrays, golden):
    """A rank's own vectors get the gradient of the loss of all questions there.

    That is what ``remote_gradients`` gives, and dividing once by all W B questions
    leaves it whole: averaging over ranks, as released, makes 1/W of it. Without remote
    gradients a passage learns from the questions of its own device alone.
    """
    z = golden("dpr_nll")
    for way in ("remote", "own"):
        assert_close(arrays[f"dpr_nll/{way}_loss"], z["ddp_loss"], 1e-5)
        assert_close(arrays[f"dpr_nll/{way}_grad_q"], z["ddp_grad_q"], 1e-5)
    assert_close(arrays["dpr_nll/remote_grad_ctx"], z["ddp_grad_ctx"], 1e-5)
    own = ranks.own_gradients(z["ddp_q"], z["ddp_ctx"]) / z["ddp_q"][..., 0].size
    assert_close(arrays["dpr_nll/own_grad_ctx"], own, 1e-5)


@pytest.mark.parametrize("case", ranks.TRIME)
def test_trime_of_released_code_on_ranks(arrays, golden, case):
    z, (variant, remote) = golden("trime_multi_rank"), ranks.TRIME[case]
    found = f"trime_multi_rank/{case}"
    assert_close(arrays[f"{found}_per_token"], z[f"{variant}_per_token"], 1e-5)
    for name in ("reps",) if remote else ("x", "reps", "E"):
        assert_close(arrays[f"{found}_grad_{name}"], z[f"{case}_grad_{name}"], 1e-4)


def assert_close(ours, theirs, tolerance):
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)
