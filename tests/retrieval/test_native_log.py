"""Nothing that a library writes to the process's stderr reaches the terminal."""

import os
import sys

import pytest

from rlm_jax.retrieval import native_log


def noisy(result):
    os.write(2, b"I0000 partitioner_factory_base.cc:58] Size of sampled dataset\n")
    if isinstance(result, Exception):
        raise result
    return result


def test_a_noisy_call_is_quiet(capfd):
    assert native_log.quietly(noisy, 3) == 3
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"


def test_an_error_is_told_afterwards(capfd):
    with pytest.raises(ValueError, match="wrong"):
        native_log.quietly(noisy, ValueError("wrong"))
    sys.stderr.write("after\n")
    assert capfd.readouterr().err == "after\n"


def test_scann_says_nothing(capfd):
    pytest.importorskip("scann")
    import numpy as np

    from rlm_jax.retrieval import scann

    keys = np.random.default_rng(0).normal(size=(400, 16)).astype(np.float32)
    build = scann.library().builder(keys, 10, "dot_product").tree(20, 5).reorder(50)
    native_log.quietly(build.score_ah(2).build)
    assert capfd.readouterr().err == ""
