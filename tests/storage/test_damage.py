"""Every file that vouches for itself: damaged anywhere, it is refused or as it was."""

import json
import pathlib
import shutil
import sys
from collections.abc import Callable

import pytest

from rlm_jax.data import corpora
from rlm_jax.errors import UserError
from rlm_jax.recipes import runs
from rlm_jax.retrievers import memory_parts
from rlm_jax.storage import cache, sealed
from tests.storage import damage, kept_files

FLIPS, PLACES = 8, 8
# Before they are written there are none; a checkpoint tells (tests/train/test_beside).
MAY_BE_GONE = {"identity.json", "refreshes.json", "decisions.json"}
OF_WORKDIRS = (
    *("config", "part", "refreshes", "decisions", "reads", "job", "searcher", "memory"),
)


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RLM_CACHE", str(tmp_path / "cache"))


def _vouching(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files of a folder; of those that a run adds some say nothing."""
    names = {".lock", "report.json"}
    return [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name not in names]


@pytest.mark.parametrize("kind", kept_files.EVERY, ids=lambda kind: kind.__name__[3:])
def test_damage_is_refused_or_changes_nothing(kind, tmp_path):
    kept = kind(tmp_path)
    wanted = kept.read()
    files = [p for p in _vouching(kept.folder) if not p.name.startswith(".")]
    assert files and kept.read() == wanted
    refused = 0
    for seed, path in enumerate(files):
        whole, flips = path.read_bytes(), max(2, FLIPS * 2 // len(files))
        for done, content in damage.texts(path, seed, flips, PLACES):
            if content is None and path.name in MAY_BE_GONE:
                continue
            path.unlink()
            if content is not None:
                path.write_bytes(content)
            try:
                found = kept.read()
            except UserError as error:
                refused += 1
                assert str(error).count("\n") == 0 and len(str(error)) > 30
            else:
                assert found == wanted, f"{path.name}: {done}"
            path.write_bytes(whole)
    assert refused >= 4 and kept.read() == wanted


def changed(path: pathlib.Path, change: Callable[[dict], object], seal: bool) -> None:
    """Changes what a file says; ``seal``: as one would who knows the rule."""
    content = json.loads(path.read_bytes())
    change(content)
    path.write_text(json.dumps(sealed.sealed(content) if seal else content))


@pytest.mark.parametrize("seal", [False, True])
def test_a_manifest_without_files_is_no_manifest(tmp_path, seal):
    """`files: {}` switched the comparison off."""
    for kind in (kept_files.of_tokens, kept_files.of_negatives):
        kept = kind(tmp_path / kind.__name__)
        kept.read()
        (path,) = kept.folder.rglob("manifest.json")
        changed(path, lambda x: x.update(files={}), seal)
        with pytest.raises(UserError, match="lists no files" if seal else "checksum"):
            kept.read()


def test_doubled_bytes_of_a_split_are_refused(tmp_path):
    """They halved bits per byte without a word."""
    kept = kept_files.of_tokens(tmp_path)
    kept.read()
    (path,) = kept.folder.rglob("manifest.json")

    def double(content):
        content["splits"]["test"]["num_bytes"] *= 2

    changed(path, double, seal=False)
    with pytest.raises(UserError, match=r"manifest.json is damaged .*delete the fol"):
        kept.read()


def test_questions_lose_no_passages(tmp_path):
    kept = kept_files.of_questions(tmp_path)
    kept.read()
    (folder,) = kept.folder.rglob("passages")
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="passages/manifest.json is damaged .*missing"):
        kept.read()


def test_a_cache_of_another_layout_is_built_anew(tmp_path, monkeypatch):
    """What an older version built has no digest; the fingerprints stay the same."""
    kept = kept_files.of_tokens(tmp_path)
    monkeypatch.setattr(cache, "_LAYOUT", 1)
    first = kept.read()
    (path,) = kept.folder.rglob("manifest.json")
    changed(path, lambda x: x.pop(sealed.CHECKSUM), seal=False)
    with pytest.raises(UserError, match="has no checksum.*delete the folder"):
        kept.read()
    monkeypatch.undo()
    monkeypatch.setenv("RLM_CACHE", str(tmp_path / "cache"))
    assert kept.read() == first


@pytest.mark.parametrize("name", OF_WORKDIRS)
def test_a_workdir_of_an_older_version_is_read(name, tmp_path):
    kept = getattr(kept_files, f"of_{name}")(tmp_path)
    (path,) = (p for p in _vouching(kept.folder) if p.suffix == ".json")
    wanted = kept.read()
    changed(path, lambda x: x.pop(sealed.CHECKSUM), seal=False)
    assert kept.read() == wanted


def test_older_lists_and_words_are_read(tmp_path):
    for kind, value, wanted in (
        (kept_files.of_removed, ["p0"], frozenset(["p0"])),
        (kept_files.of_source, "abc", "abc"),
    ):
        kept = kind(tmp_path / kind.__name__)
        (path,) = kept.folder.iterdir()
        path.write_text(json.dumps(value))
        assert kept.read() == wanted
        path.write_text("7")
        with pytest.raises(UserError, match="is damaged"):
            kept.read()
    # Such a version wrote no list of none removed either.
    path.write_text(json.dumps("abc"))
    assert not memory_parts._lists_removed(path.parent)
    assert memory_parts._removed(tmp_path / "removed.json", needed=False) == set()


@pytest.mark.parametrize(
    ("field", "value"),
    [("system", 7), ("identity", ["a"]), ("identity", {"tokenizer": 3})],
)
def test_a_configuration_of_other_types_is_refused(tmp_path, field, value):
    kept = kept_files.of_config(tmp_path)
    path = tmp_path / "kept" / runs.CONFIG
    changed(path, lambda x: x.update({field: value}), seal=True)
    with pytest.raises(UserError, match=rf"config.json is damaged \({field}"):
        kept.read()


def test_a_part_compares_what_an_older_version_knew(tmp_path):
    """A field that was not written down is no difference; a changed one is."""
    folder = tmp_path / "part"
    runs.claim_part(folder, {"seed": 0})
    runs.claim_part(folder, {"seed": 0, "vocab_size": 9})
    with pytest.raises(UserError, match="vocab_size is 9 there and 8 here"):
        runs.claim_part(folder, {"seed": 0, "vocab_size": 8})
    with pytest.raises(UserError, match="seed is 0 there and 1 here"):
        runs.claim_part(folder, {"seed": 1, "vocab_size": 9})


@pytest.mark.parametrize("name", ["Missing", "os.path.Nothing", "rlm_evil.Type"])
def test_a_corpus_imports_no_type_of_others(tmp_path, monkeypatch, name):
    """TensorFlow Datasets imports the module that a features.json names."""
    (tmp_path / "rlm_evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    kept = kept_files.of_corpus(tmp_path)
    kept.read()
    (features,) = kept.folder.rglob("features.json")
    text = features.read_text()
    own = "tensorflow_datasets.core.features.text_feature.Text"
    assert own in text
    features.write_text(text.replace(own, name))
    (directory,) = (p for p in kept.folder.iterdir() if p.is_dir())
    cache.write_manifest(directory, of=corpora._INSIDE)
    with pytest.raises(UserError, match="names the type|cannot be read"):
        kept.read()
    beside = tmp_path / "cache" / "tfds" / "toy" / "1.0.0"
    beside.mkdir(parents=True)
    beside.joinpath("features.json").write_text(features.read_text())
    with pytest.raises(UserError):
        corpora.load("toy", cache_dir=tmp_path / "cache")
    assert "rlm_evil" not in sys.modules


def test_what_a_library_raises_over_records_is_named(tmp_path):
    """24 of 40 damaged records were a RuntimeError."""

    class Records(list):
        def __getitem__(self, index):
            raise RuntimeError("corrupt chunk\nat 7")

    broken = corpora._Documents(Records([1]), "train", "text:a", tmp_path)
    with pytest.raises(UserError, match=r"text:a cannot be read \(corrupt chunk\): d"):
        broken[0]
