"""One part of a memory of tokens: its passages, their vectors, and what was removed."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlm_jax import characters, terminal
from rlm_jax.data import passages as passages_lib
from rlm_jax.data.cloze_tokens import ClozeTokenizer
from rlm_jax.data.passages import Passage, Passages
from rlm_jax.errors import UserError
from rlm_jax.method import Neighbours
from rlm_jax.models.encoder import EncoderConfig
from rlm_jax.retrieval import auto_index, datastore, encode_tokens, exact, scann
from rlm_jax.retrieval.datastore import DTYPES, Datastore
from rlm_jax.retrieval.index import Index, check_target, first_kept
from rlm_jax.retrievers import encoder_towers
from rlm_jax.retrievers.encoder_towers import Tower
from rlm_jax.storage import cache, sealed

LONGEST = 1 << 14  # tokens of a passage
REMOVED = "removed.json"
_SOURCE = "source.json"


@dataclasses.dataclass
class MemoryConfig:
    """How the tokens of passages are kept and searched."""

    length: int = 128  # tokens that are encoded at once, marks among them
    dtype: str = "float16"  # of the vectors: float16, float32 or int8
    index: auto_index.Kind = "auto"  # exact, scann, or auto, by the number of tokens
    target_recall: float = 0.95  # of ScaNN
    batch_tokens: int = 8192  # encoded at once, padding included


class Part(NamedTuple):
    """What a part holds."""

    folder: Path
    passages: Passages
    bounds: np.ndarray  # int64 [P + 1], where the tokens of each passage begin
    store: Datastore
    index: Any  # an `Index`, once it is opened
    removed: frozenset[str]


def check(config: MemoryConfig, encoder: EncoderConfig) -> None:
    """Raises UserError where the memory's length or dtype cannot be."""
    if config.length < 3 or config.length > encoder.max_length:
        raise UserError(
            f"memory.length is {config.length}, and the encoder has "
            f"{encoder.max_length} positions; choose a length from 3 to that."
        )
    if config.dtype not in DTYPES:
        raise UserError(
            f"memory.dtype is {config.dtype!r}; choose one of {', '.join(DTYPES)}."
        )
    check_target(config.target_recall)
    auto_index.check_kind(config.index, "memory.index")


def build_part(
    folder: Path,
    passages: Sequence[Passage],
    fingerprint: str,
    encoder: encode_tokens.StatesEncoder,
    tower: Tower,
    config: MemoryConfig,
) -> Part:
    """A part of some passages; a killed build goes on.

    Args:
      folder: the part's own.
      passages: a collection, or a list.
      fingerprint: of the passages.
      encoder: of the tower's hidden states.
      tower: says whose vectors they are.
      config: how they are kept.

    Raises:
      UserError: the folder was begun with other passages, or as `encode_tokens.build`.
    """
    tokenizer = ClozeTokenizer(tower.tokenizer)

    def write(there: Path) -> None:
        rows = [
            tokenizer.passages([passage], max_length=LONGEST)[0] for passage in passages
        ]
        np.concatenate(rows).astype("<i4").tofile(there / "tokens")
        np.cumsum([0, *map(len, rows)]).astype("<i8").tofile(there / "bounds")
        source = {"fingerprint": fingerprint, "beside": [REMOVED]}
        sealed.write(there / _SOURCE, source, indent=None)
        passages_lib.write(there, passages, str(folder))

    texts = cache.once(folder / "texts", write)
    if _fingerprint(texts) != fingerprint:
        raise UserError(
            f"The memory {folder} was begun with other passages; delete it, or give "
            "those."
        )
    if not (folder / REMOVED).exists():
        write_removed(folder, ())
    blocks = _blocks(texts, tower, config)
    with terminal.counter("encoding tokens", int(blocks.lengths.sum())) as advance:
        encode_tokens.build(
            encoder, blocks, blocks.lengths, folder / "keys",
            dtype=config.dtype, identity=_identity(fingerprint, tower, config),
            advance=advance,
        )  # fmt: skip
    return open_part(folder, tower, config, lambda: encoder)


def open_part(
    folder: Path,
    tower: Tower,
    config: MemoryConfig,
    encoder: Callable[[], encode_tokens.StatesEncoder],
) -> Part:
    """A part that was built, with its index, which is built where it is missing.

    Args:
      encoder: gives the encoder of the questions on which an index is tuned.

    Raises:
      UserError: its vectors are of another encoder, length or dtype, or a file is
        damaged.
    """
    texts = folder / "texts"
    fingerprint = _fingerprint(texts)
    identity = _identity(fingerprint, tower, config) | {"dtype": config.dtype}
    store = datastore.open(folder / "keys", identity=identity)
    removed = _removed(folder / REMOVED, needed=_lists_removed(texts))
    part = Part(
        folder,
        passages_lib.read(texts, str(folder), fingerprint, older=True),
        np.array(cache.map_array(texts / "bounds", "<i8")),
        store,
        None,
        removed,
    )
    index = indexed(part, tower, config, encoder, folder / "keys.scann-ip")
    return part._replace(index=index)


def write_removed(folder: Path, ids: Iterable[str]) -> None:
    """Writes down which passages of a part are there no more."""
    sealed.write(folder / REMOVED, {"removed": sorted(ids)})


def _removed(path: Path, *, needed: bool) -> frozenset[str]:
    """What `write_removed` wrote; older versions wrote no list of none."""
    mend = f"write it again, or build {path.parent} again"
    if not needed and not path.exists():
        return frozenset()
    return frozenset(_one(path, "removed", list[str], mend))


def _fingerprint(texts: Path) -> str:
    """Of a part's passages."""
    return _one(texts / _SOURCE, "fingerprint", str, cache.remedy(texts.parent))


def _lists_removed(texts: Path) -> bool:
    """Whether a part has had a list of what was removed from its start."""
    path, mend = texts / _SOURCE, cache.remedy(texts.parent)
    read = characters.read_json(path)
    if not isinstance(read, dict) or "beside" not in read:
        return False
    return REMOVED in _one(path, "beside", list[str], mend)


def _one(path: Path, name: str, kind: Any, mend: str) -> Any:
    """A field of a file; older versions wrote the value of the only one alone."""
    try:
        read = characters.read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        raise sealed.damaged(path, str(error), mend) from error
    read = read if isinstance(read, dict) else {name: read}
    return sealed.unsealed(read, {name: kind}, path, remedy=mend, older=True)[name]


def indexed(
    part: Part,
    tower: Tower,
    config: MemoryConfig,
    encoder: Callable[[], encode_tokens.StatesEncoder],
    beside: Path,
) -> Index:
    """The index of a part's store, built if it is to be ScaNN's and is not there.

    Args:
      part: whose texts give the blanks on which ScaNN is tuned.
      encoder: gives the encoder of these blanks.
      beside: where ScaNN's index is kept.
    """
    queries = None
    kind = auto_index.resolve(config.index, part.store.num_entries)
    if kind == "scann" and not beside.exists():
        blocks = _blocks(part.folder / "texts", tower, config)
        queries = masked_vectors(blocks, blocks.lengths, encoder(), tower)
    return auto_index.choose(
        part.store, "ip", kind=config.index, directory=beside,
        target_recall=config.target_recall, queries=queries,
    )  # fmt: skip


def _identity(passages: str, tower: Tower, config: MemoryConfig) -> dict[str, object]:
    return encoder_towers.fingerprints(tower) | {
        "passages": passages,
        "length": config.length,
    }


def masked_vectors(
    rows: Sequence[np.ndarray],
    lengths: np.ndarray,
    encoder: encode_tokens.StatesEncoder,
    tower: Tower,
    count: int = 1000,
) -> np.ndarray:
    """Queries as blanks make them, of which there are none yet, float32 [2 N, D].

    In some rows two or three tokens are hidden behind two masks, as in training.

    Args:
      rows: ``rows[i]`` is int32 [n + 2], between its marks.
      lengths: int [R], the n of each row.
      count: rows that are drawn, with a fixed seed; N is less where there are fewer.
    """
    rng, mask = np.random.default_rng(0), tower.tokenizer.mask_id
    drawn = rng.permutation(np.flatnonzero(lengths >= 2))[:count]
    masked, places = [], np.zeros((len(drawn), 2), np.int32)
    for place, number in enumerate(drawn.tolist()):
        row = rows[number]
        size = int(rng.integers(2, 1 + min(3, len(row) - 2)))
        at = int(rng.integers(1, len(row) - size))
        masked.append(np.array([*row[:at], mask, mask, *row[at + size :]], np.int32))
        places[place] = at, at + 1
    return encoder.at(masked, places).reshape(2 * len(drawn), -1)


def searches(part: Part) -> dict[str, Any]:
    """How a part is searched, and what of the nearest tokens that finds."""
    entries = part.store.num_entries
    if isinstance(part.index, scann.ScannIndex):
        return {"index": "scann", **scann.report(part.index)}
    kind = "exact" if isinstance(part.index, exact.Exact) else "scann"
    return {"index": kind, "entries": entries}


def _blocks(texts: Path, tower: Tower, config: MemoryConfig) -> "_Blocks":
    tokens = cache.map_array(texts / "tokens", "<i4")
    bounds = np.array(cache.map_array(texts / "bounds", "<i8"))
    return _Blocks(tokens, bounds, tower, config.length - 2)


class _Blocks(Sequence[np.ndarray]):
    """The rows that are encoded: passages, cut where they are too long, with marks."""

    def __init__(self, tokens, bounds, tower: Tower, room: int):
        self.tokens, self.marks = tokens, tower.tokenizer
        cuts = [np.arange(a, b, room) for a, b in zip(bounds, bounds[1:], strict=False)]
        self.starts = np.concatenate(cuts).astype(np.int64)
        ends = np.concatenate(
            [np.append(cut[1:], b) for cut, b in zip(cuts, bounds[1:], strict=True)
             if len(cut)]
        )  # fmt: skip
        self.lengths = ends.astype(np.int64) - self.starts

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index):
        start, length = self.starts[index], self.lengths[index]
        text = self.tokens[start : start + length]
        marks = [self.marks.cls_id], [self.marks.sep_id]
        return np.concatenate([marks[0], text, marks[1]]).astype(np.int32)


def search_alive(part: Part, alive: np.ndarray, queries, k: int) -> Neighbours:
    """The k nearest of the passages that are there, of which none is missed."""
    total = part.store.num_entries

    def keep(entries: np.ndarray) -> np.ndarray:
        return alive[np.searchsorted(part.bounds, entries, side="right") - 1]

    fetch = min(k, total)
    while True:
        found = first_kept(part.index.search(queries, fetch), keep, k)
        if fetch == total or alive.all() or (found.ids >= 0).all():
            return found
        fetch = min(4 * fetch, total)
