"""Collections of passages: on the disk, in any order, by number or by id.

A collection is copied once into the cache: one file of UTF-8 (id, title, text of each
passage in turn), the int64 offsets of these fields, and the hashes of the ids in
ascending order. The files are memory-mapped, so 21 million passages cost no
memory; opening them reads the files once, for their checksums, and building them takes
12 bytes of memory a passage, or about 100 a document where a corpus is cut.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
from tqdm import tqdm

from rlm_jax.data import google_re, names, passage_files, squad, trex
from rlm_jax.data.passage_files import Passage
from rlm_jax.errors import UserError
from rlm_jax.storage import cache

_FORMAT = 1
NAMES = (
    "stdlib, beir:FOLDER, dpr:FILE, jsonl:FILE, jsonl:FOLDER, squad:FILE, trex:PATH, "
    "google_re:PATH, corpus:NAME or several joined by +"
)


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
    * ``squad:FILE``: the paragraphs of SQuAD's own JSON, ``TITLE#0`` and so on.
    * ``trex:PATH``: the sentences of LAMA's T-REx (a folder or a file), each once, with
      the fact's object in its place.
    * ``google_re:PATH``: the sentences of LAMA's Google-RE, likewise; the title is the
      person's name.
    * ``corpus:NAME`` or ``corpus:NAME#SPLIT``: the documents of a split (train, where
      none is named) of a corpus that `corpora.load` knows, cut into disjoint blocks of
      100 words (Karpukhin et al. 2020, section 4.1), the last of a document shorter.
      Words are what white space parts; a block is the document from its first word to
      its last, as it stands. (In DPR's released file the last block of an article is
      filled up from the article's start, and the first begins with the title.) The
      title is the document's name, the id ``<name>#<number of the block>``; where an
      earlier document has the name, ``#<number of the document>`` follows it. A split
      is lower-case letters, so a path that ends in a ``#`` and such needs its split.
    * ``NAME+NAME``: several of these, one after another. Only a ``+`` before one of
      these kinds joins, so a path may hold others. A collection that shares an id with
      an earlier one has its place before each of its ids, such as ``2/<id>``.

    An empty text is kept (collections in BEIR's form have some); a missing one is not.

    Arguments:
      name: one of the above.
      cache_dir: where collections are kept; see `cache.root`.
      progress: whether to show a progress bar while copying.

    Raises:
      UserError: an unknown name or split, a file that is missing, damaged or not UTF-8,
        a record without a text, an id that occurs twice, no passage at all, or a full
        disk.
    """
    parts = names.parts(name)
    if len(parts) > 1:
        loaded = [load(part, cache_dir=cache_dir, progress=progress) for part in parts]
        kind, content = "joined", [part.fingerprint for part in loaded]
        records = _joined(loaded)
    else:
        kind, content, records = _read_named(name, cache_dir)
    key = cache.fingerprint(_FORMAT, kind, content)
    directory = cache.folder("passages", key, cache_dir)
    cache.once(
        directory, lambda folder: write(folder, records, name, progress=progress)
    )
    return read(directory, name, key)


def _read_named(
    name: str, cache_dir: str | os.PathLike | None
) -> tuple[str, Any, Iterator[Passage]]:
    """The kind of one collection, what tells it apart, and its passages."""
    kind, path = names.parse(name)
    readers = {
        "beir": passage_files.beir,
        "dpr": passage_files.dpr,
        "jsonl": passage_files.jsonl,
        "squad": squad.passages,
        "trex": trex.passages,
        "google_re": google_re.passages,
    }
    if name == "stdlib":
        return kind, *passage_files.stdlib()
    if kind in readers and path:
        return kind, *readers[kind](Path(path))
    if kind == names.CORPUS and path:
        return kind, *passage_files.corpus(path, cache_dir)
    meant = names.spelling(name, (*names.PASSAGES, names.CORPUS))
    raise UserError(f"There are no passages '{name}'{meant}: choose one of {NAMES}.")


def _joined(parts: Sequence[Passages]) -> Iterator[Passage]:
    """Collections one after another; ids that an earlier one has get a prefix."""
    taken: list[np.ndarray] = []
    for place, part in enumerate(parts, 1):
        prefix, hashes = "", part._hashes
        # A shared hash is nearly always a shared id, and a prefix too many is harmless.
        while any(_intersect(hashes, earlier) for earlier in taken):
            prefix = f"{place}/{prefix}"
            ids = (prefix + part._id(row) for row in range(len(part)))
            hashes = np.sort(np.fromiter(map(_hash, ids), np.uint64, len(part)))
        taken.append(hashes)
        for passage in part:
            yield passage._replace(id=prefix + passage.id)


def _intersect(hashes: np.ndarray, ascending: np.ndarray) -> bool:
    places = np.searchsorted(ascending, hashes)
    return bool((ascending[np.minimum(places, len(ascending) - 1)] == hashes).any())


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
            if not passage.id:
                raise UserError(
                    f"Passage {count + 1} of {name} has an empty id: give it one."
                )
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
    cache.write_manifest(directory, {"count": count})


def read(
    directory: Path, name: str, fingerprint: str, *, older: bool = False
) -> Passages:
    """Opens what `write` wrote; ``older`` as for `cache.read_manifest`.

    Raises:
      UserError: a file is missing, truncated or altered.
    """
    what, kinds = f"collection {name}", {"count": int}
    manifest = cache.read_manifest(directory, what, kinds, older=older)
    count = manifest["count"]
    passages = _map(directory, name, fingerprint)
    if len(passages) != count:
        raise UserError(
            f"The passages {name} are {len(passages)} of {count}: "
            f"{cache.remedy(directory)}."
        )
    return passages


def none() -> Passages:
    """A collection without passages, for a reader that answers without any."""
    empty = {"u1": 0, "<i8": 1, "<u8": 0, "<i4": 0}
    arrays = (np.zeros(size, dtype) for dtype, size in empty.items())
    return Passages("none", cache.fingerprint("no passages"), *arrays)


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
