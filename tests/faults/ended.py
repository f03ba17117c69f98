"""What a run has left in the end, and what a process may say when it fails."""

import gzip
import hashlib
import json
import pathlib
import re
from typing import Any

from tests.faults.server import Ended

VOLATILE = (
    *("seconds", "targets_per_second", "chunks_per_second", "padding", "commit"),
)
"""Fields of reports and logs that differ from run to run.

They are what the last start took (in seconds, in padding of what it encoded itself),
and the commit.
"""


def of(workdir: pathlib.Path) -> dict[str, str]:
    """File -> digest of what may not differ between two runs.

    Of the last checkpoint of each training, the checksums of all its arrays; of
    reports and logs everything but times; of weights, answers and runs the bytes.
    """
    found: dict[str, Any] = {}
    for path in sorted(workdir.rglob("*")):
        name = str(path.relative_to(workdir))
        if path.name == "checkpoints" and path.is_dir():
            last = max(int(x.name) for x in path.iterdir() if x.name.isdigit())
            listed = json.loads((path / str(last) / "arrays/metadata").read_bytes())
            sums = {key: listed[key] for key in ("arrays", "crc32")}
            found[name] = {"step": last, **sums}
        elif path.name in ("report.json", "refreshes.json"):
            found[name] = _without_times(json.loads(path.read_bytes()))
        elif path.name == "metrics.jsonl":
            lines = path.read_text().splitlines()
            found[name] = [_without_times(json.loads(line)) for line in lines]
        elif path.suffix == ".gz":
            found[name] = gzip.decompress(path.read_bytes())
        elif path.suffix == ".safetensors" or path.name == "answers.jsonl":
            found[name] = path.read_bytes()
    return {name: _digest(value, workdir) for name, value in found.items()}


def _digest(value: Any, workdir: pathlib.Path) -> str:
    if not isinstance(value, bytes):
        # A report may name folders of its workdir.
        text = json.dumps(value, sort_keys=True).replace(str(workdir), "WORKDIR")
        value = text.encode()
    return hashlib.sha256(value).hexdigest()[:16]


def _without_times(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_times(x) for x in value]
    if isinstance(value, dict):
        return {k: _without_times(x) for k, x in value.items() if k not in VOLATILE}
    return value


def differences(found: dict[str, str], wanted: dict[str, str]) -> str:
    """The names of files that differ; empty where none does.

    A finished run does not read again what it kept beside an index, to go on from.
    """
    names = sorted(x for x in found.keys() | wanted.keys() if "/indexes/" not in x)
    return ", ".join(n for n in names if found.get(n) != wanted.get(n))


def complaint(ended: Ended) -> str:
    """What is wrong with how a process failed; empty if it said one sentence.

    A hang, a traceback, an end by a signal that nobody sent, or no sentence.
    """
    if ended.status is None:
        return "hang"
    if "Traceback (most recent call last)" in ended.said:
        last = [x for x in ended.said.splitlines() if re.match(r"[\w.]+(:|$)", x)]
        return f"traceback: {(last or ['?'])[-1][:160]}"
    if ended.status < 0:
        return f"ended by signal {-ended.status}"
    told = re.findall(r"(?:^|[\r\n])error: ", ended.said)  # perhaps over a bar
    if ended.status and len(told) != 1:
        return f"status {ended.status} with {len(told)} sentences"
    return ""
