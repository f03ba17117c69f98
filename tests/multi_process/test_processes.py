"""Two processes of two devices equal one device, and train and resume together."""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from tests.multi_device import cases

pytestmark = pytest.mark.multi


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    """What each of the two processes found."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    outs = [folder / f"{process}.npz" for process in range(2)]
    arguments = ["2", f"localhost:{port}", "2"]
    started = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.multi_device.worker"),
                *(out, *arguments, str(process)),
            ],
            env=os.environ | {"JAX_PLATFORMS": "cpu", "NPROC": "16"},
            cwd=pathlib.Path(__file__).parents[2],
        )
        for process, out in enumerate(outs)
    ]
    try:
        assert [process.wait(timeout=600) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
            process.wait()
    loaded = []
    for out in outs:
        with np.load(out, allow_pickle=False) as npz:
            loaded.append(dict(npz))
    return loaded


@pytest.mark.parametrize("case", cases.MECHANISMS)
def test_two_processes_equal_one_device(arrays, case):
    first = arrays[0]  # which has done the cases on one device too
    on_one = [name for name in first if name.startswith(f"{case}/one/")]
    assert any("/gradient/" in name for name in on_one)
    for name in on_one:
        for found in arrays:
            on_all = found[name.replace("/one/", "/all/")]
            cases.assert_close(on_all, first[name], name)


def test_processes_agree_bit_for_bit(arrays):
    first, second = (
        {n: x for n, x in found.items() if "/all/" in n or n.startswith("loop/")}
        for found in arrays
    )
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def test_all_learn_that_the_first_process_failed(arrays):
    told = [str(found["refused"]) for found in arrays]
    assert told == [
        "the disk is full",
        "The first process cannot write, and tells why.",
    ]


def test_the_loop_resumes_bit_for_bit(arrays):
    for found in arrays:
        np.testing.assert_array_equal(found["loop/resumed"], found["loop/straight"])
        np.testing.assert_array_equal(found["loop/saved"], found["loop/straight"])
