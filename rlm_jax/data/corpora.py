"""Corpora: TensorFlow Datasets data sources, prepared once, read without TensorFlow."""

import contextlib
import functools
import io
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

from tqdm import tqdm

from rlm_jax import characters
from rlm_jax.data import names, sources
from rlm_jax.data.splits import Document
from rlm_jax.errors import UserError
from rlm_jax.storage import cache

_FORMAT = 1
_NAME_FIELDS = ("title", "name", "id")
_INSIDE = "documents/1.0.0"  # of a prepared corpus, as the library lays it out
_RECORDS = ".array_record-"
_THREADS = 64  # that array_record starts once, on any machine
# TensorFlow Datasets imports the module of every type that a features.json names.
_TYPE_KEYS = {"pythonClassName", "python_class_name", "type"}
_OWN_TYPE = re.compile(r"tensorflow_datasets\.core\.features\.\w+\.\w+")


@dataclass(frozen=True)
class Corpus:
    """Documents by split, on disk, read one at a time.

    Attributes:
      name: what `load` was given.
      fingerprint: SHA-256 of the content; equal text, equal fingerprint.
      splits: those of "train", "validation" and "test" that there are.
      facts: of a text of one's own, how it was divided and which files were read.
    """

    name: str
    fingerprint: str
    splits: tuple[str, ...]
    _builder: Any
    _stored_names: dict[str, str]
    facts: Mapping[str, Any] = field(default_factory=dict)
    _verify: Callable[[str], object] = lambda split: None  # before a split is read

    def documents(self, split: str) -> Sequence[Document]:
        """Random access to a split; raises UserError if there is no such split."""
        if split not in self.splits:
            raise UserError(
                f"The corpus {self.name} has no split '{split}': choose one of "
                f"{', '.join(self.splits)}."
            )
        stored = self._stored_names[split]
        self._verify(stored)
        _check_threads()
        with _reading(self.name, self._builder.data_dir):
            records = self._builder.as_data_source(stored, file_format="array_record")
            return _Documents(records, split, self.name, self._builder.data_dir)


@functools.cache
def _check_threads() -> None:
    """Raises UserError where array_record could not start its threads.

    It would wait for ever then.
    """
    ending = threading.Event()
    begun = [threading.Thread(target=ending.wait, daemon=True) for _ in range(_THREADS)]
    try:
        for thread in begun:
            thread.start()
    except RuntimeError as error:
        raise UserError(
            f"No {_THREADS} threads can be started to read a corpus; free memory, or "
            "raise the limits of this process (ulimit -v, ulimit -u)."
        ) from error
    finally:
        ending.set()
        for thread in begun:
            if thread.ident is not None:
                thread.join()


class _Documents(Sequence[Document]):
    def __init__(self, records: Any, split: str, corpus: str, folder: os.PathLike):
        self._records, self._len = records, len(records)
        self._split, self._corpus, self._folder = split, corpus, folder

    def __len__(self) -> int:
        return self._len

    @overload
    def __getitem__(self, index: int) -> Document: ...
    @overload
    def __getitem__(self, index: slice) -> list[Document]: ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]  # negative indices, and IndexError
        with _reading(self._corpus, self._folder):
            record = self._records[index]
            name = next((record[f] for f in _NAME_FIELDS if f in record), None)
            label = f"{self._split}/{index}" if name is None else _string(name)
            return Document(label, _string(record["text"]))


def load(name: str, *, cache_dir: str | os.PathLike | None = None) -> Corpus:
    """Prepares a corpus, or opens what an earlier call with equal content prepared.

    Arguments:
      name: "stdlib" (the source and help of the running Python); "text:PATH" (a file,
        or a folder of .txt or .txt.gz); "jsonl:PATH" (likewise, one ``{"text": ..}`` a
        line); or any name that ``tfds.builder`` takes, with a field "text".
        Files and sub-folders called train, valid (validation, dev) and test are the
        splits, also where PATH is the file train, if every file belongs to one. Of any
        other text, whole documents (or records) are divided by a hash of their text,
        90 : 5 : 5 and no copy in two splits; fewer than three give their last 5% + 5%
        of lines to validation and test. A WikiText file is cut into its pages; any
        other text file is one document.
      cache_dir: where to keep it; default ``$RLM_CACHE`` or ``~/.cache/rlm_jax``. A
        TensorFlow Datasets name without `cache_dir` uses that library's own folder.

    Raises:
      UserError: no such path or name, no text, text that is not UTF-8, a bad record.
    """
    kind, argument = names.parse(name)
    if kind in ("text", "jsonl") and not argument:
        raise UserError(f"The corpus '{name}' lacks its path: write {kind}:PATH.")
    if name == "stdlib":
        return _prepare(name, sources.stdlib(), cache_dir)
    if kind == "text":
        return _prepare(name, sources.text(Path(argument)), cache_dir)
    if kind == "jsonl":
        return _prepare(name, sources.jsonl(Path(argument)), cache_dir)
    return _catalogue(argument if kind == "tfds" else name, cache_dir)


def _prepare(
    name: str, source: sources.Source, cache_dir: str | os.PathLike | None
) -> Corpus:
    import tensorflow_datasets as tfds

    fingerprint = cache.fingerprint(_FORMAT, source.fingerprint)
    directory = cache.folder("corpora", fingerprint, cache_dir)
    cache.once(directory, lambda path: _write(path, source))

    def verify(only: Callable[[str], bool]) -> None:
        cache.read_manifest(directory, f"corpus {name}", of=_INSIDE, only=only)

    # Records are compared when they are read, which a run seldom does.
    verify(lambda file: _RECORDS not in file)
    _refuse_other_types(directory / _INSIDE)
    with _reading(name, directory):
        builder = tfds.builder_from_directory(directory / _INSIDE)
    return Corpus(
        name,
        fingerprint,
        source.splits,
        builder,
        {s: s for s in source.splits},
        source.facts,
        lambda split: verify(lambda file: f"-{split}{_RECORDS}" in file),
    )


def _write(directory: Path, source: sources.Source) -> None:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered

    terminal = sys.stderr
    # Registered builders are found by name; this one is never looked up.
    with registered.skip_registration():

        class Documents(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")
            code_path = None  # there are no checksums of downloads beside this file

            def _info(self) -> Any:
                # Explicit, because the default looks for a package folder. Shuffling
                # would lose the order of documents, which consecutive batches need.
                return tfds.core.DatasetInfo(
                    builder=self,
                    features=tfds.features.FeaturesDict(
                        {"name": tfds.features.Text(), "text": tfds.features.Text()}
                    ),
                    disable_shuffling=True,
                )

            def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
                return {
                    split: self._generate_examples(split) for split in source.splits
                }

            def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
                documents = source.documents(split)
                for index, document in enumerate(
                    tqdm(documents, f"preparing {split}", file=terminal, position=0)
                ):
                    yield index, document._asdict()

        builder = Documents(data_dir=directory, file_format="array_record")
    # The library's own bars and announcements speak of the temporary folder.
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        builder.download_and_prepare()
    cache.write_manifest(directory, of=_INSIDE)


def _catalogue(name: str, cache_dir: str | os.PathLike | None) -> Corpus:
    if meant := names.spelling(name, names.CORPORA):
        raise UserError(f"The path {name} does not say what it holds{meant}.")
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import naming
    from tensorflow_datasets.core.utils import file_utils

    data_dir = None if cache_dir is None else cache.root(cache_dir) / "tfds"
    called = naming.camelcase_to_snakecase(re.split(r"\W", name)[0])
    for place in file_utils.list_data_dirs(data_dir) if called else ():
        _refuse_other_types(Path(place, called))
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except (tfds.core.DatasetNotFoundError, ValueError, ImportError) as error:
        raise UserError(
            f"Unknown corpus '{name}' ({_first_line(error)}): use stdlib, text:PATH, "
            "jsonl:PATH or a name from the TensorFlow Datasets catalogue."
        ) from error
    except Exception as error:  # whatever a damaged folder makes the library raise
        where = data_dir or "the folder of TensorFlow Datasets"
        raise UserError(
            f"The corpus {name} cannot be opened ({_first_line(error)}): delete what "
            f"is prepared of it in {where} and run again."
        ) from error
    features: Any = builder.info.features or {}
    fields = [str(field) for field in features]
    if "text" not in fields:
        raise UserError(
            f"The corpus {name} has no field 'text' (it has {', '.join(fields)}): "
            "choose another, or convert it to jsonl:PATH."
        )
    try:
        builder.download_and_prepare()
    except Exception as error:  # networks and builders fail in many ways
        raise UserError(
            f"The corpus {name} cannot be prepared ({_first_line(error)}): check the "
            "network, or prepare it with tfds elsewhere and copy it."
        ) from error
    info = builder.info.splits
    stored = {
        ours: theirs
        for ours in ("train", "validation", "test")
        for theirs in (ours, "valid", "val", "dev")
        if theirs in info and (ours == "validation" or ours == theirs)
    }
    sizes = {s: [info[s].shard_lengths, info[s].num_bytes] for s in stored.values()}
    fingerprint = cache.fingerprint(_FORMAT, builder.info.full_name, sizes)
    return Corpus(name, fingerprint, tuple(stored), builder, stored)


@contextlib.contextmanager
def _reading(name: str, folder: str | os.PathLike) -> Iterator[None]:
    """Whatever the libraries raise over a prepared corpus is damage to its folder."""
    try:
        yield
    except Exception as error:
        raise UserError(
            f"The prepared corpus {name} cannot be read ({_first_line(error)}): delete "
            f"the folder {folder} and run again."
        ) from error


def _refuse_other_types(folder: Path) -> None:
    """Raises UserError where a folder names types that are not the library's own."""
    for path in sorted(folder.rglob("features.json")):
        with _reading(folder.name, folder):
            named = list(_type_names(characters.read_json(path)))
        for name in named:
            if not _OWN_TYPE.fullmatch(name):
                raise UserError(
                    f"The file {characters.shown(str(path))} names the type {name!a}, "
                    "whose module would be imported: read the data elsewhere, and give "
                    "its text as jsonl:PATH."
                )


def _type_names(content: Any) -> Iterator[str]:
    """The Python types that a features.json names."""
    if isinstance(content, list):
        for one in content:
            yield from _type_names(one)
    if isinstance(content, dict):
        for key, value in content.items():
            if key in _TYPE_KEYS and isinstance(value, str) and "." in value:
                yield value
            yield from _type_names(value)


def _string(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _first_line(error: Exception) -> str:
    lines = characters.lines(str(error).strip())
    return lines[0].strip().rstrip(".") if lines else type(error).__name__
