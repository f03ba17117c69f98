"""One device equals four, with SGD(1.0), in the sums and in every gradient."""

import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from tests.multi_device import cases

pytestmark = pytest.mark.multi


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    out = tmp_path_factory.mktemp("devices") / "out.npz"
    subprocess.run(
        [sys.executable, "-m", "tests.multi_device.worker", out, "4"],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "NPROC": "16"},
        cwd=pathlib.Path(__file__).parents[2],
        timeout=600,
        check=True,
    )
    with np.load(out, allow_pickle=False) as loaded:
        return dict(loaded)


@pytest.mark.parametrize("case", cases.CASES)
def test_four_devices_equal_one(arrays, case):
    on_one = [name for name in arrays if name.startswith(f"{case}/one/")]
    assert any("/gradient/" in name for name in on_one)
    for name in on_one:
        on_all = arrays[name.replace("/one/", "/all/")]
        cases.assert_close(on_all, arrays[name], name)
        # Counts may be none; the last biases of DPR's passages and of the reranker move
        # all scores of a question alike.
        none = r"/(rank|accuracy|agreement)/0$|passage/.*feed_forward_norm/bias"
        none += r"|reranker/.*/(feed_forward_norm|projection)/bias"
        if not re.search(none, name):
            assert np.abs(arrays[name]).max() > 0.01, name


def test_the_loop_resumes_bit_for_bit(arrays):
    np.testing.assert_array_equal(arrays["loop/resumed"], arrays["loop/straight"])
    np.testing.assert_array_equal(arrays["loop/saved"], arrays["loop/straight"])
