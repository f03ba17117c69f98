"""The tokens of passages as a memory that can be searched, added to and taken from.

A memory is a folder of parts, each with its own passages, datastore and index:

    part-0000/texts/        the passages, and where the tokens of each begin
    part-0000/keys/         the datastore: a vector and a token an entry
    part-0000/removed.json  ids of passages that are not retrieved any more

Adding documents makes a part and removing them writes a list; nothing that is there
already is encoded or built again. SILO (Min et al. 2023b) asks for that: texts whose
owners opt out are never retrieved again, and no model is trained anew.
"""

import functools
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from rlm_jax.data.cloze_tokens import ClozeTokenizer
from rlm_jax.data.passages import Passage, Passages
from rlm_jax.errors import UserError
from rlm_jax.method import Neighbours
from rlm_jax.models.token_encoder import token_embedder
from rlm_jax.retrieval import bm25, encode_tokens
from rlm_jax.retrieval.index import none_found
from rlm_jax.retrievers import memory_parts
from rlm_jax.retrievers.encoder_towers import Tower
from rlm_jax.retrievers.memory_parts import MemoryConfig, Part
from rlm_jax.storage import cache


class TokenMemory:
    """A memory in a folder; `build` makes one, `open_memory` opens one.

    Entries and passages are numbered through all parts, in the order they were added.
    """

    def __init__(
        self,
        folder: Path,
        tower: Tower,
        config: MemoryConfig,
        encoder: encode_tokens.StatesEncoder | None = None,
    ):
        """Opens the parts; use `build` or `open_memory`."""
        self.folder, self.tower, self.config = folder, tower, config
        if encoder is not None:
            self.encoder = encoder
        self.tokenizer = ClozeTokenizer(tower.tokenizer)
        self.parts: list[Part] = []
        for path in sorted(folder.glob("part-[0-9][0-9][0-9][0-9]")):
            if (path / "keys").exists():
                self._append(self._open(path))

    @functools.cached_property
    def encoder(self) -> encode_tokens.StatesEncoder:
        """Rows of tokens to vectors, for keys and for queries."""
        return encode_tokens.StatesEncoder(
            token_embedder(self.tower.config).embed,
            self.tower.params,
            max_length=self.config.length,
            batch_tokens=max(self.config.batch_tokens, self.config.length),
            pad_id=self.tower.tokenizer.pad_id,
        )

    @property
    def num_tokens(self) -> int:
        return int(self.bounds[-1])

    @functools.cached_property
    def bounds(self) -> np.ndarray:
        """int64 [P + 1]: where the tokens of each passage begin."""
        bounds = [np.zeros(1, np.int64)]
        for part in self.parts:
            bounds.append(bounds[-1][-1] + part.bounds[1:])
        return np.concatenate(bounds)

    @functools.cached_property
    def tokens(self) -> np.ndarray:
        """int32 [M]: the token of each entry."""
        stored = [part.store.values(0, part.store.num_entries) for part in self.parts]
        return np.concatenate(stored or [np.zeros(0, np.int32)])

    @functools.cached_property
    def alive(self) -> np.ndarray:
        """bool [P]: passages that may be retrieved."""
        return np.array(
            [p.id not in part.removed for part in self.parts for p in part.passages]
            if any(part.removed for part in self.parts)
            else np.ones(len(self.bounds) - 1),
            bool,
        )

    def passage(self, number: int) -> Passage:
        """A passage by its number."""
        for part in self.parts:
            if number < len(part.passages):
                return part.passages[number]
            number -= len(part.passages)
        raise IndexError(f"there is no passage {number} behind the last")

    def passage_of(self, entries: np.ndarray) -> np.ndarray:
        """The number of the passage of each entry."""
        return np.searchsorted(self.bounds, entries, side="right") - 1

    def shuffled(self, seed: int = 0) -> "TokenMemory":
        """A control: the same vectors, the tokens permuted among them."""
        other = TokenMemory(self.folder, self.tower, self.config, self.encoder)
        tokens = np.random.default_rng(seed).permutation(self.tokens)
        other.tokens = tokens
        return other

    def overlay(self, folder: Path) -> "TokenMemory":
        """The same memory, whose changes are written to a folder of their own.

        What was written there before is deleted; the overlay is not opened again.
        """
        shutil.rmtree(folder, ignore_errors=True)
        other = TokenMemory(folder, self.tower, self.config, self.encoder)
        for part in self.parts:
            (folder / part.folder.name).mkdir(parents=True)
            other._append(part._replace(folder=folder / part.folder.name))
        return other

    def add(self, passages: Sequence[Passage]) -> None:
        """Adds documents, which are encoded; what is there stays as it is.

        Raises:
          UserError: no passages, an id twice or one that is in the memory already, or
            no text.
        """
        ids = [passage.id for passage in passages]
        present = {x.id for part in self.parts for x in part.passages} - {
            id_ for part in self.parts for id_ in part.removed
        }
        twice = present.intersection(ids) or {x for x in ids if ids.count(x) > 1}
        if not ids or twice:
            raise UserError(
                f"The passage '{min(twice)}' is in the memory {self.folder} already; "
                "remove it first, or give another id."
                if twice
                else f"There are no passages to add to {self.folder}; give some."
            )
        self._append(self._build(passages, cache.fingerprint(list(passages))))

    def remove(self, ids: Iterable[str]) -> None:
        """Documents that are never retrieved again; nothing is built anew.

        Raises:
          UserError: there is no passage of such an id.
        """
        wanted = set(ids)
        here = [wanted.intersection(x.id for x in part.passages) for part in self.parts]
        missing = wanted.difference(*here)
        if missing:
            raise UserError(
                f"There is no passage '{min(missing)}' in the memory {self.folder}; "
                "name those that are there."
            )
        for number, (part, found) in enumerate(zip(self.parts, here, strict=True)):
            if found:
                removed = part.removed | found
                memory_parts.write_removed(part.folder, removed)
                self.parts[number] = part._replace(removed=removed)
        self._forget("alive", "lexical")

    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        """The k entries with the largest inner products, of passages still there.

        Args:
          queries: float32 [N, D].
          k: how many; -1 where there are fewer.
        """
        scores, ids, first, passages = [], [], 0, 0
        for part in self.parts:
            alive = self.alive[passages : passages + len(part.passages)]
            found = memory_parts.search_alive(part, alive, queries, k)
            scores.append(found.scores)
            ids.append(np.where(found.ids >= 0, found.ids + first, -1))
            first, passages = first + part.store.num_entries, passages + len(alive)
        if not scores:
            return none_found(len(queries), k)
        scores, ids = np.concatenate(scores, 1), np.concatenate(ids, 1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return Neighbours(*(np.take_along_axis(x, order, 1) for x in (scores, ids)))

    def search_within(
        self, queries: np.ndarray, passages: np.ndarray, k: int
    ) -> Neighbours:
        """`search` among the tokens of some passages alone, exactly.

        Args:
          queries: float32 [N, D].
          passages: numbers of passages, int [P]; -1 is none.
          k: how many.
        """
        passages = np.unique(passages[passages >= 0])
        passages = passages[self.alive[passages]]
        spans = [np.arange(*self.bounds[p : p + 2]) for p in passages.tolist()]
        entries = np.concatenate([np.zeros(0, np.int64), *spans])
        scores, ids = none_found(len(queries), k)
        products = queries @ self.keys(entries).T
        order = np.argsort(-products, axis=1, kind="stable")[:, :k]
        width = order.shape[1]
        scores[:, :width] = np.take_along_axis(products, order, 1)
        ids[:, :width] = entries[order]
        return Neighbours(scores, ids)

    def keys(self, entries: np.ndarray) -> np.ndarray:
        """The vectors of some entries, float32 [N, D]."""
        keys = np.zeros((len(entries), self.encoder.dim), np.float32)
        first = 0
        for part in self.parts:
            here = (entries >= first) & (entries < first + part.store.num_entries)
            keys[here] = part.store.gather_keys(entries[here] - first)
            first += part.store.num_entries
        return keys

    @functools.cached_property
    def lexical(self) -> tuple[bm25.BM25Index, np.ndarray]:
        """BM25 over the passages that are there, and their numbers."""
        numbers = np.flatnonzero(self.alive)
        texts = (self.passage(int(number)).joined for number in numbers)
        return bm25.build(texts, bm25.BM25Config(), source=""), numbers

    def by_words(self, texts: Sequence[str], k: int) -> np.ndarray:
        """The k passages with the largest BM25 scores of each text, int [N, k]."""
        index, numbers = self.lexical
        found = index.search(texts, k).ids
        return np.where(found >= 0, numbers[np.maximum(found, 0)], -1)

    def _open(self, path: Path) -> Part:
        return memory_parts.open_part(
            path, self.tower, self.config, lambda: self.encoder
        )

    def _append(self, part: Part) -> None:
        self.parts.append(part)
        self._forget("bounds", "tokens", "alive", "lexical")

    def _forget(self, *names: str) -> None:
        for name in names:
            self.__dict__.pop(name, None)

    def _build(self, passages: Sequence[Passage], fingerprint: str) -> Part:
        return memory_parts.build_part(
            self.folder / f"part-{len(self.parts):04d}",
            passages,
            fingerprint,
            self.encoder,
            self.tower,
            self.config,
        )


def build(
    folder: Path,
    passages: Sequence[Passage],
    tower: Tower,
    config: MemoryConfig,
    encoder: encode_tokens.StatesEncoder | None = None,
) -> TokenMemory:
    """The memory of some passages; a killed build goes on, a whole one is opened.

    Args:
      folder: the memory's own.
      passages: a collection, or a list.
      tower: the encoder, whose last hidden states are the vectors.
      config: how.
      encoder: another memory's of the same tower, so that none is compiled again.

    Raises:
      UserError: the folder has a memory of another encoder or of other passages, or as
        `memory_parts.check` and `encode_tokens.build`.
    """
    memory_parts.check(config, tower.config)
    memory = TokenMemory(folder, tower, config, encoder)
    if isinstance(passages, Passages):
        fingerprint = passages.fingerprint
    else:
        fingerprint = cache.fingerprint(list(passages))
    if not memory.parts:
        memory._append(memory._build(passages, fingerprint))
    elif memory.parts[0].passages.fingerprint != fingerprint:
        raise UserError(
            f"The memory {folder} is of other passages; choose another folder, or add "
            "these to it."
        )
    return memory


def open_memory(
    folder: Path,
    tower: Tower,
    config: MemoryConfig,
    encoder: encode_tokens.StatesEncoder | None = None,
) -> TokenMemory:
    """A memory that was built; arguments as for `build`.

    Raises:
      UserError: there is none in the folder, or it is of another encoder.
    """
    memory = TokenMemory(folder, tower, config, encoder)
    if not memory.parts:
        raise UserError(f"There is no memory of tokens in {folder}; build it first.")
    return memory
