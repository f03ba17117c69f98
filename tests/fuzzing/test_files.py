"""Whatever a file holds, what comes out is right or a `UserError`.

Every loader reads damaged files: a few of each in `make test`, hundreds, marked slow,
in `make test-all`. They are the same every time.
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest
from hypothesis import configuration
from hypothesis import strategies as st

from rlm_jax.errors import UserError
from tests.fuzzing.cases import CASES, Case, whole
from tests.fuzzing.lines import presets
from tests.fuzzing.mutations import DEEP, changed_bytes, changed_json, examples, spelled


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Iterator[Callable[[str], pathlib.Path]]:
    """Name of a case -> a folder in which its file is whole."""
    root = tmp_path_factory.mktemp("fuzz")
    configuration.set_hypothesis_home_dir(root / "hypothesis")

    @functools.cache
    def base(kind: str) -> pathlib.Path:
        folder = root / "whole" / (kind or "nothing")
        folder.mkdir(parents=True)
        if kind == "beir":
            (folder / "qrels").mkdir()
            (folder / "queries.jsonl").write_text('{"_id": "1", "text": "who?"}\n')
            (folder / "qrels/test.tsv").write_text("1\tp\t1\n")
        elif kind == "agn":
            (folder / "agn").mkdir()
            (folder / "agn/label_names_kb.txt").write_text("a\nb\nc\nd\n")
        elif kind == "lm":
            fields = dataclasses.asdict(presets("lm")["tiny"]())
            (folder / "config.json").write_bytes(spelled({"system": "lm", **fields}))
        elif kind:
            whole(kind, folder)
        return folder

    @functools.cache
    def prepare(name: str) -> pathlib.Path:
        case, folder = CASES[name], root / name.replace("/", "_")
        shutil.copytree(base(case.base), folder)
        if case.seed:
            (folder / case.file).write_bytes(data_of(case, folder))
        return folder

    yield prepare
    configuration.set_hypothesis_home_dir(None)


def data_of(case: Case, folder: pathlib.Path) -> bytes:
    """The file as it is whole."""
    if not case.seed:
        return (folder / case.file).read_bytes()
    return case.seed if isinstance(case.seed, bytes) else written(case, case.seed)


def written(case: Case, value: Any) -> bytes:
    if not case.file.endswith(".jsonl"):
        return spelled(value)
    return b"".join(spelled(x) + b"\n" for x in (value if isinstance(value, list) else [
        value]))  # fmt: skip


def damaged(case: Case, data: bytes) -> st.SearchStrategy[bytes]:
    """The file's content with some of it changed."""
    if isinstance(case.seed, bytes):
        return changed_bytes(data)
    value = case.seed or json.loads(data)
    of_json = changed_json(value).map(functools.partial(written, case))
    return of_json | of_json | changed_bytes(data) | st.just(DEEP.encode())


@functools.cache
def kept(folder: pathlib.Path, name: str) -> bytes:
    return data_of(CASES[name], folder)


def read_damaged(prepared, name: str, data: st.DataObject) -> None:
    case, folder = CASES[name], prepared(name)
    content = data.draw(damaged(case, kept(folder, name)))
    (folder / case.file).write_bytes(content)
    with contextlib.suppress(UserError):
        case.read(folder)


@pytest.mark.parametrize("name", CASES)
def test_what_is_whole_is_read(prepared, name, capsys):
    folder = prepared(name)
    (folder / CASES[name].file).write_bytes(kept(folder, name))
    assert CASES[name].read(folder) != []


LONG = [name for name, case in CASES.items() if case.few]
SHORT = [name for name in CASES if name not in LONG]


@pytest.mark.parametrize("name", SHORT)
@examples(8)
@hypothesis.given(data=st.data())
def test_damaged_files(prepared, name, data):
    read_damaged(prepared, name, data)


@pytest.mark.parametrize("name", LONG)
@examples(2)
@hypothesis.given(data=st.data())
def test_damaged_models(prepared, name, data):
    read_damaged(prepared, name, data)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
@examples(300)
@hypothesis.given(data=st.data())
def test_many_damaged_files(prepared, name, data):
    read_damaged(prepared, name, data)


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
@examples(80)
@hypothesis.given(data=st.data())
def test_many_damaged_models(prepared, name, data):
    read_damaged(prepared, name, data)
