"""report.json: what a run measured, with its controls and where it was measured."""

import importlib.metadata
import math
import os
import pathlib
import platform
import subprocess
from collections.abc import Mapping
from typing import Any

import jax

from rlm_jax import characters
from rlm_jax.errors import UserError
from rlm_jax.storage import atomic
from rlm_jax.version import __version__

Report = dict[str, Any]
"""JSON data; `build` says which fields there are."""

FIELDS = {
    "system": str,
    "preset": str,
    "corpus": str,
    "metrics": dict,
    "controls": dict,
    "seconds": dict,
    "versions": dict,
    "device": str,
    "commit": str | None,
}

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scann")


def build(
    *,
    system: str,
    preset: str,
    corpus: str,
    metrics: Mapping[str, float],
    controls: Mapping[str, Mapping[str, float]],
    seconds: Mapping[str, float],
    protocol: Mapping[str, Any] | None = None,
    commit: str | None = None,
) -> Report:
    """The report of one run, with the versions and the device it ran on.

    Args:
      system, preset, corpus: what ran, as the launcher names them.
      metrics: figure by name ("perplexity", "bits_per_byte", "ndcg@10", ...).
      controls: the same names under each control ("off", "shuffled", "foreign", ...).
      seconds: wall-clock seconds by phase of the run.
      protocol: what a perplexity counts: split, tokens, window, stride, denominator.
      commit: of the code; see `commit_of`.

    Raises:
      UserError: a figure is not a finite number.
    """
    report = {
        "system": system,
        "preset": preset,
        "corpus": corpus,
        "metrics": _finite("metrics", metrics),
        "controls": {
            name: _finite(f"controls.{name}", values)
            for name, values in controls.items()
        },
        "seconds": _finite("seconds", seconds),
        "versions": versions(),
        "device": device(),
        "commit": commit,
    }
    if protocol is not None:
        report["protocol"] = dict(protocol)
    return report


def write(path: str | os.PathLike, report: Report) -> None:
    """Write a report as JSON: a reader sees the old file or the whole new one.

    Raises:
      UserError: the file cannot be written.
    """
    path = pathlib.Path(path)
    try:
        atomic.write_json(path, report, indent=2)
    except OSError as error:
        raise UserError(
            f"Cannot write {path} ({error.strerror}): "
            "free space there or choose another --workdir."
        ) from error


def read(path: str | os.PathLike) -> Report:
    """Read a report back.

    Raises:
      UserError: the file is missing, is not JSON, or lacks a field.
    """
    try:
        report = characters.read_json(path)
    except OSError as error:
        raise UserError(
            f"Cannot read the report {path} ({error.strerror}): "
            "run the launcher that writes it first."
        ) from error
    except ValueError as error:
        raise UserError(
            f"The report {path} is not JSON: delete it and run its launcher again."
        ) from error
    for field, kind in FIELDS.items():
        if (
            not isinstance(report, dict)
            or field not in report
            or not isinstance(report[field], kind)
        ):
            raise UserError(
                f'The report {path} lacks a proper "{field}": '
                "delete it and run its launcher again."
            )
    return report


def versions() -> dict[str, str]:
    """Versions of Python, of rlm_jax and of the libraries that decide the numbers."""
    numbers = {"python": platform.python_version(), "rlm_jax": __version__}
    for library in LIBRARIES:
        try:
            numbers[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return numbers


def device() -> str:
    """The devices of this run in words, as "4 x NVIDIA H100" or "1 x cpu (2 cores)"."""
    kind = jax.devices()[0].device_kind
    if jax.default_backend() == "cpu":
        kind = f"{kind} ({os.cpu_count()} cores)"
    return f"{jax.device_count()} x {kind}"


def commit_of(folder: str | os.PathLike) -> str | None:
    """The git commit of a working tree, "-dirty" where it has changes; None without."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()


def _finite(where: str, figures: Mapping[str, float]) -> dict[str, float]:
    numbers = {name: float(value) for name, value in figures.items()}
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise UserError(
                f"{where}.{name} is {value}: look for the step at which the loss left "
                "the finite numbers in metrics.jsonl."
            )
    return numbers
