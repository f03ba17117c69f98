"""Collections of passages: on the disk, in any order, by number or by id.

A collection is copied once into the cache: one file of UTF-8 (id, title, text of each
passage in turn), the int64 offsets of these fields, and the hashes of the ids in
ascending order. The files are memory-mapped, so 21 million passages cost no
memory; opening them reads the files once, for their checksums, and building them takes
12 bytes of memory a passage.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from tqdm import tqdm

from rlm_jax.data import cache, docstrings, files
from rlm_jax.errors import UserError

_FORMAT = 1
NAMES = "stdlib, beir:FOLDER, dpr:FILE, jsonl:FILE or jsonl:FOLDER"


class Passage(NamedTuple):
    """A text with an id that is unique in its collection; the title may be empty."""

    id: str
    title: str
    text: str

    @property
    def joined(self) -> str:
        """Title and text as one text, which is what BM25 indexes."""
        return f"{self.title} {self.text}" if self.title else self.text


@dataclass(frozen=True, eq=False)
class Passages(Sequence[Passage]):
    """A collection on the disk; `load` opens one.

    Attributes:
      name: what it was loaded by.
      fingerprint: SHA-256 of the content behind it; equal content, equal fingerprint.
    """

    name: str
    fingerprint: str
    _text: np.ndarray = field(repr=False)  # uint8, the fields one after another
    _offsets: np.ndarray = field(repr=False)  # int64 [3 N + 1]
    _hashes: np.ndarray = field(repr=False)  # uint64 [N], ascending
    _rows: np.ndarray = field(repr=False)  # int32 [N], the row of each hash

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Passage: ...
    @overload
    def __getitem__(self, index: slice) -> list[Passage]: ...
    def __getitem__(self, index: int | slice) -> Passage | list[Passage]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        row = int(index) + (len(self) if index < 0 else 0)
        if not 0 <= row < len(self):
            raise IndexError(f"there is no passage {index} among {len(self)}")
        bounds = self._offsets[3 * row : 3 * row + 4].tolist()
        whole = self._text[bounds[0] : bounds[3]].tobytes()
        cuts = [bound - bounds[0] for bound in bounds]
        return Passage(
            *(
                whole[low:high].decode()
                for low, high in zip(cuts, cuts[1:], strict=False)
            )
        )

    def __iter__(self) -> Iterator[Passage]:
        return (self[row] for row in range(len(self)))

    def lengths(self) -> np.ndarray:
        """int64 [N]: the bytes of each passage's title and text together."""
        return self._offsets[3::3] - self._offsets[1::3][: len(self)]

    def rows_of(self, ids: Iterable[str]) -> np.ndarray:
        """The rows of passages by id, int32; -1 where there is none of that id."""
        ids = list(ids)
        wanted = np.fromiter((_hash(id_) for id_ in ids), np.uint64, len(ids))
        starts = np.searchsorted(self._hashes, wanted)
        rows = np.full(len(ids), -1, np.int32)
        for i, (id_, value, start) in enumerate(
            zip(ids, wanted.tolist(), starts.tolist(), strict=True)
        ):
            # Two ids may share a hash: the id itself decides.
            while start < len(self) and int(self._hashes[start]) == value:
                row = int(self._rows[start])
                if self._id(row) == id_:
                    rows[i] = row
                    break
                start += 1
        return rows

    def _id(self, row: int) -> str:
        low, high = self._offsets[3 * row : 3 * row + 2].tolist()
        return self._text[low:high].tobytes().decode(errors="replace")


def load(
    name: str, *, cache_dir: str | os.PathLike | None = None, progress: bool = True
) -> Passages:
    """Opens a collection of passages by name; the first call copies it to the cache.

    * ``stdlib``: the documented functions and classes of the running Python. The text
      is the source without its docstrings, the title the module.
    * ``beir:FOLDER``: ``corpus.jsonl[.gz]`` with ``{"_id", "title", "text"}``.
    * ``dpr:FILE``: ``psgs_w100.tsv[.gz]``, whose columns are id, text, title.
    * ``jsonl:FILE`` or ``jsonl:FOLDER`` of .jsonl and .jsonl.gz files:
      ``{"id" or "_id", "text", "title" where there is one}``. Without an id it is the
      line's number, after the file's name where there are several.

    An empty text is kept (collections in BEIR's form have some); a missing one is not.

    Arguments:
      name: one of the above.
      cache_dir: where collections are kept; see `cache.root`.
      progress: whether to show a progress bar while copying.

    Raises:
      UserError: an unknown name, a file that is missing, damaged or not UTF-8, a record
        without a text, an id that occurs twice, no passage at all, or a full disk.
    """
    kind, _, path = name.partition(":")
    readers = {"beir": _from_beir, "dpr": _from_dpr, "jsonl": _from_jsonl}
    if name == "stdlib":
        content = docstrings.fingerprint()
        records = (Passage(d.id, d.module, d.source) for d in docstrings.extract())
    elif kind in readers and path:
        content, records = readers[kind](Path(path))
    else:
        raise UserError(f"There are no passages '{name}': choose one of {NAMES}.")
    key = cache.fingerprint(_FORMAT, kind, content)
    directory = cache.root(cache_dir) / "passages" / key[:32]
    cache.once(
        directory, lambda folder: write(folder, records, name, progress=progress)
    )
    return read(directory, name, key)


def write(
    directory: Path, records: Iterable[Passage], name: str, *, progress: bool = False
) -> None:
    """Writes a stream of passages to an empty folder, for `read`.

    Raises:
      UserError: no passage, two of one id, or a text that is not Unicode.
    """
    with (
        open(directory / "text", "wb") as text_file,
        open(directory / "offsets", "wb") as offset_file,
        open(directory / "ids", "wb") as id_file,
    ):
        position, count = 0, 0
        offset_file.write(position.to_bytes(8, "little"))
        for passage in tqdm(
            records, desc=f"reading {name}", unit=" passages", disable=not progress
        ):
            for text in passage:
                try:
                    position += text_file.write(text.encode())
                except UnicodeEncodeError as error:  # JSON can spell half a character
                    raise UserError(
                        f"Passage '{passage.id!a}' of {name} holds half a character "
                        f"({text[error.start]!a}): correct or remove it."
                    ) from error
                offset_file.write(position.to_bytes(8, "little"))
            id_file.write(_hash(passage.id).to_bytes(8, "little"))
            count += 1
    if not count:
        raise UserError(f"There are no passages in {name}: give at least one.")
    hashes = np.fromfile(directory / "ids", "<u8")
    order = np.argsort(hashes, kind="stable").astype("<i4")
    hashes[order].tofile(directory / "hashes")
    order.tofile(directory / "rows")
    (directory / "ids").unlink()
    _refuse_twins(_map(directory, name, ""))
    manifest = {"count": count, "files": cache.checksums(directory)}
    (directory / "manifest.json").write_text(json.dumps(manifest, indent=1))


def read(directory: Path, name: str, fingerprint: str) -> Passages:
    """Opens what `write` wrote.

    Raises:
      UserError: a file is missing, truncated or altered.
    """
    try:
        manifest = json.loads((directory / "manifest.json").read_text())
        checked, count = manifest["files"], manifest["count"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"The passages {name} have no readable manifest: {cache.remedy(directory)}."
        ) from error
    cache.verify(directory, checked, f"collection {name}")
    passages = _map(directory, name, fingerprint)
    if len(passages) != count:
        raise UserError(
            f"The passages {name} are {len(passages)} of {count}: "
            f"{cache.remedy(directory)}."
        )
    return passages


def _map(directory: Path, name: str, fingerprint: str) -> Passages:
    arrays = {"text": "u1", "offsets": "<i8", "hashes": "<u8", "rows": "<i4"}
    return Passages(
        name,
        fingerprint,
        *(cache.map_array(directory / file, dtype) for file, dtype in arrays.items()),
    )


def _refuse_twins(passages: Passages) -> None:
    hashes = passages._hashes
    for at in np.flatnonzero(hashes[1:] == hashes[:-1]).tolist():
        # Neighbours suffice: of equal hashes nearly all are equal ids.
        first, second = passages._rows[at : at + 2].tolist()
        if passages._id(first) == passages._id(second):
            raise UserError(
                f"The id '{passages._id(first)}' of {passages.name} belongs to the "
                f"passages {first + 1} and {second + 1}: give each an id of its own."
            )


def _hash(id_: str) -> int:
    data = id_.encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


# --- readers: (content, stream of passages) ------------------------------------------


def _from_beir(folder: Path) -> tuple[Any, Iterator[Passage]]:
    file = files.either(folder / "corpus.jsonl")
    return files.digest(file), _jsonl_passages(file, "")


def _from_jsonl(path: Path) -> tuple[Any, Iterator[Passage]]:
    if not path.is_dir():
        return files.digest(path), _jsonl_passages(path, "")
    found = sorted(
        p for p in path.iterdir() if p.name.endswith((".jsonl", ".jsonl.gz"))
    )
    # A file beside its own compressed copy is one collection, not two.
    found = [p for p in found if p.suffix != ".gz" or p.with_suffix("") not in found]
    if not found:
        raise UserError(f"The folder {path} holds no .jsonl or .jsonl.gz files.")
    stems = [p.name.removesuffix(".gz").removesuffix(".jsonl") for p in found]
    content = [[s, files.digest(p)] for s, p in zip(stems, found, strict=True)]
    prefixes = [f"{stem}/" if len(found) > 1 else "" for stem in stems]
    return content, (
        passage
        for file, prefix in zip(found, prefixes, strict=True)
        for passage in _jsonl_passages(file, prefix)
    )


def _jsonl_passages(path: Path, prefix: str) -> Iterator[Passage]:
    for number, record in files.json_records(path):
        id_ = record.get("_id")
        id_ = record.get("id") if id_ is None else id_
        title = record.get("title") or ""
        text = record.get("text")
        if not isinstance(text, str) or not isinstance(title, str):
            raise files.bad_record(path, number, 'a JSON object with a string "text"')
        if id_ is not None and not isinstance(id_, str | int):
            raise files.bad_record(path, number, 'a JSON object with a plain "id"')
        yield Passage(f"{prefix}{number}" if id_ is None else str(id_), title, text)


def _from_dpr(path: Path) -> tuple[Any, Iterator[Passage]]:
    return files.digest(path), _dpr_passages(path)


def _dpr_passages(path: Path) -> Iterator[Passage]:
    for number, row in files.rows(path):
        if number == 1 and row[:1] == ["id"]:
            continue
        if len(row) != 3:
            raise files.bad_record(path, number, "an id, a text and a title, by tabs")
        id_, text, title = row
        yield Passage(id_, title, text)
