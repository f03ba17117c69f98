"""What the launchers of retrievers share: collections, encoders, search."""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tqdm

from experiments import training
from rlm_jax import pretrained
from rlm_jax.data import cache, text_encoding
from rlm_jax.data import passages as passages_lib
from rlm_jax.data import questions as questions_lib
from rlm_jax.data.batching import Batches
from rlm_jax.data.passages import Passage, Passages
from rlm_jax.data.questions import Questions
from rlm_jax.data.text_encoding import TextTokenizer
from rlm_jax.errors import UserError
from rlm_jax.method import Method, Neighbours, Params
from rlm_jax.models.encoder import EncoderConfig, embedder
from rlm_jax.retrieval import (
    auto_index,
    bm25,
    datastore,
    encode,
    encode_passages,
    index,
    scann,
)
from rlm_jax.retrieval.index import TARGET_RECALL
from rlm_jax.train import progress

TITLES = ("join", "pair", "none")


@dataclasses.dataclass
class CollectionConfig:
    """Which passages, and which questions are asked of them."""

    passages: str = "stdlib"  # stdlib, beir:FOLDER, dpr:FILE or jsonl:PATH
    questions: str = ""  # likewise; empty: as passages
    split: str = "test"  # of the questions; in experiments.encode empty: none


@dataclasses.dataclass
class TextConfig:
    """How questions and passages become tokens."""

    titles: str = "join"  # join (title, space, text), pair (two segments) or none
    question_length: int = 64  # tokens, the marks among them
    passage_length: int = 256


@dataclasses.dataclass
class SearchConfig:
    """How a collection is encoded and searched."""

    k: int = 100  # passages a question
    index: str = "auto"  # auto (by the number of passages), exact or scann
    target_recall: float = TARGET_RECALL  # share of the nearest that ScaNN finds
    kept: str = "float32"  # what ScaNN scores its best with: float32, bfloat16 or int8
    dtype: str = "float32"  # of the stored vectors: float32, float16 or int8
    batch_tokens: int = 8192  # of an encoder's batch, padding included


class Collection(NamedTuple):
    """Passages, with questions about them."""

    passages: Passages
    questions: Questions

    @property
    def fingerprint(self) -> str:
        return f"{self.passages.fingerprint[:16]}-{self.questions.fingerprint[:16]}"

    @property
    def texts(self) -> list[str]:
        """Of the questions."""
        return [question.text for question in self.questions.questions]


class Tower(NamedTuple):
    """An encoder with all that it needs to read text."""

    config: EncoderConfig
    params: Params
    tokenizer: TextTokenizer


def load_collection(config: CollectionConfig) -> Collection:
    """Passages and questions by name; each is read once and cached."""
    name = config.questions or config.passages
    asked = questions_lib.load(name, config.split)
    if not asked.relevance and not any(q.answers for q in asked.questions):
        raise UserError(
            f"The questions {name} have neither passages that answer them nor answers; "
            "name others to judge by."
        )
    return Collection(passages_lib.load(config.passages), asked)


def load_tower(
    folder: str | pathlib.Path, wanted: EncoderConfig | None = None
) -> Tower:
    """An encoder in Hugging Face's layout: a published one, or that of a run's workdir.

    Of ``wanted`` it takes what a folder cannot say (dropout, dtype, remat), and pooling
    and normalisation where it does not.
    """
    folder, own = pathlib.Path(folder), pathlib.Path(folder) / "encoder"
    if (own / "config.json").is_file():
        if (folder / "question_encoder").is_dir():
            raise UserError(
                f"The run in {folder} has two encoders; name {own}, which reads "
                f"passages, or {folder / 'question_encoder'}."
            )
        folder = own
    otherwise, changes = {}, {}
    if wanted is not None:
        otherwise = {"pooling": wanted.pooling, "normalise": wanted.normalise}
        changes = {n: getattr(wanted, n) for n in ("dropout", "dtype", "remat")}
    config, params = pretrained.load_encoder(folder, otherwise=otherwise, **changes)
    return Tower(config, params, text_encoding.load(folder))


def save_tower(folder: pathlib.Path, tower: Tower) -> None:
    """Writes an encoder for `load_tower`, Transformers and sentence-transformers."""
    pretrained.save_encoder(folder, tower.config, tower.params, tower.tokenizer)


def train_tokenizer(passages: Passages, vocab_size: int) -> TextTokenizer:
    """An uncased WordPiece vocabulary of a collection, made once and cached."""
    key = cache.fingerprint("wordpiece", passages.fingerprint, vocab_size)
    folder = cache.root() / "tokenizers" / key[:32]

    def build(there: pathlib.Path) -> None:
        texts = (passage.joined for passage in passages)
        text_encoding.train(texts, vocab_size=vocab_size).save(there)

    return text_encoding.load(cache.once(folder, build))


def passage_rows(
    tokenizer: TextTokenizer, text: TextConfig
) -> Callable[[Sequence[Passage]], list[np.ndarray]]:
    """Some passages -> their tokens, int32 [n] each, cut at ``passage_length``."""
    if text.titles not in TITLES:
        raise UserError(
            f"text.titles is {text.titles!r}; choose one of {', '.join(TITLES)}."
        )
    encode_texts = functools.partial(tokenizer.encode, max_length=text.passage_length)

    def rows(some: Sequence[Passage]) -> list[np.ndarray]:
        if text.titles == "pair":
            return encode_texts([p.title for p in some], [p.text for p in some])
        join = text.titles == "join"
        return encode_texts([p.joined if join else p.text for p in some])

    return rows


def encode_collection(
    tower: Tower,
    passages: Sequence[Passage],
    fingerprint: str,
    text: TextConfig,
    search: SearchConfig,
    folder: pathlib.Path,
    *,
    alone: bool = True,
) -> tuple[datastore.Datastore, dict[str, float]]:
    """The passages' vectors on disk, built, continued or opened; and the padding.

    Args:
      fingerprint: of the passages.
      alone: whether only this process encodes; else all of them do, together.
    """
    text = cut(text, tower.config)
    encoder = encoder_of(tower, search, text.passage_length)
    with bar("encoding passages", len(passages)) as advance:
        store = encode_passages.build(
            encoder,
            passages,
            passage_rows(tower.tokenizer, text),
            folder,
            dtype=search.dtype,
            identity={
                **fingerprints(tower),
                "passages": fingerprint,
                "titles": text.titles,
                "passage_length": text.passage_length,
            },
            share=(0, 1) if alone else None,
            advance=advance,
        )
    return store, {"padding": encoder.padding} if encoder.counts else {}


def encode_questions(
    tower: Tower, texts: Sequence[str], text: TextConfig, search: SearchConfig
) -> np.ndarray:
    """float32 [N, D], a vector a question."""
    length = cut(text, tower.config).question_length
    rows = tower.tokenizer.encode(list(texts), max_length=length)
    with bar("encoding questions", len(rows)) as advance:
        return encoder_of(tower, search, length)(rows, advance=advance)


def fingerprints(tower: Tower) -> dict[str, Any]:
    """What vectors of a tower depend on, in a few words."""
    config = dataclasses.asdict(tower.config)
    for name in ("dropout", "remat", "dtype"):  # they change at most its rounding
        del config[name]
    return {
        "encoder": encode.fingerprint(tower.params),
        "encoder_config": config,
        "tokenizer": tower.tokenizer.fingerprint,
    }


def cut(text: TextConfig, encoder: EncoderConfig) -> TextConfig:
    """The lengths, no longer than the encoder has positions."""
    return dataclasses.replace(
        text,
        passage_length=min(text.passage_length, encoder.max_length),
        question_length=min(text.question_length, encoder.max_length),
    )


def encoder_of(
    tower: Tower, search: SearchConfig, length: int, *, max_rows: int = 0
) -> encode_passages.TextEncoder:
    return encode_passages.TextEncoder(
        embedder(tower.config).embed,
        tower.params,
        max_length=length,
        batch_tokens=search.batch_tokens,
        pad_id=tower.tokenizer.pad_id,
        max_rows=max_rows,
    )


def open_index(
    store: datastore.Datastore,
    search: SearchConfig,
    queries: np.ndarray | None = None,
    *,
    metric: str = "ip",
) -> index.Index:
    """The configured index; a ScaNN index stays beside the store.

    A new one is tuned on ``queries``, float32 [N, D], where they are given.
    """
    check_search(search)
    return auto_index.choose(
        store,
        metric,
        kind=search.index,
        target_recall=search.target_recall,
        kept=search.kept,
        queries=queries,
    )


def check_search(search: SearchConfig, field: str = "search") -> None:
    """Raises UserError for what a search would be refused for after the encoding."""
    auto_index.check_kind(search.index, f"{field}.index")
    if search.kept not in scann.KEPT:
        raise UserError(
            f"{field}.kept is {search.kept!r}; choose one of {', '.join(scann.KEPT)}."
        )
    index.check_target(search.target_recall)


def search_dense(
    questions: Tower,
    store: datastore.Datastore,
    texts: Sequence[str],
    text: TextConfig,
    search: SearchConfig,
) -> Neighbours:
    """The passages with the largest inner products for each question."""
    vectors = encode_questions(questions, texts, text, search)
    return open_index(store, search, vectors).search(vectors, search.k)


def searcher(
    questions: Tower,
    store: datastore.Datastore,
    text: TextConfig,
    search: SearchConfig,
    *,
    max_rows: int = 0,
    keep: str = "first",
) -> Callable[[Sequence[str], int], Neighbours]:
    """(texts, k) -> passages, for many calls: the index is opened once, and no bar.

    ``keep`` says which tokens of a question that is too long are read (first or last).
    ``max_rows`` is as for `TextEncoder`: 1 for questions that come one at a time, whose
    few shapes are compiled once.
    """
    found = open_index(store, search)
    length = cut(text, questions.config).question_length
    encoder = encoder_of(questions, search, length, max_rows=max_rows)

    def answer(texts: Sequence[str], k: int) -> Neighbours:
        rows = questions.tokenizer.encode(list(texts), max_length=length, keep=keep)
        return found.search(encoder(rows), k)

    return answer


def search_bm25(
    passages: Passages,
    texts: Sequence[str],
    k: int,
    folder: pathlib.Path,
    config: bm25.BM25Config | None = None,
) -> Neighbours:
    """The passages with the largest BM25 scores; the index stays in ``folder``."""
    found = open_bm25(passages, folder, config or bm25.BM25Config())
    return found.search(texts, k, progress=True)


def open_bm25(
    passages: Passages, folder: pathlib.Path, config: bm25.BM25Config
) -> bm25.BM25Index:
    """The BM25 index of a collection, built or opened."""
    if folder.exists():
        return bm25.load(folder, config=config, source=passages.fingerprint)
    built = bm25.build(
        (passage.joined for passage in passages),
        config,
        source=passages.fingerprint,
        progress=True,
    )
    bm25.save(built, folder)
    return built


def describe(collection: Collection) -> None:
    """What a dry run shows of a collection."""
    lengths = collection.passages.lengths()
    progress.say(
        f"{len(collection.passages):,} passages of {lengths.mean():,.0f} bytes on "
        f"average, {lengths.max():,} at most"
    )
    progress.say(f"{len(collection.questions):,} questions")


def train(
    method: Method,
    batches: Batches,
    validation: Batches | None,
    config: Any,
    workdir: pathlib.Path,
    *,
    initial_params: Params | None = None,
    validation_batches: int = 8,
) -> Params:
    """Train to ``config.train.steps``, resuming from the workdir; on the host.

    Args:
      config: has ``train``, ``optim`` and ``batch_size``.
      validation: what the method's own loss is told of while it trains.
    """
    judged = None
    if validation is not None:
        judged = training.validation(
            method, validation, config.batch_size, validation_batches
        )
    return training.train(
        method,
        training.from_batches(batches, config.batch_size, config.train),
        config.optim,
        config.train,
        workdir,
        initial_params=initial_params,
        validation=judged,
    )


@contextlib.contextmanager
def bar(
    description: str, total: int, *, disable: bool = False
) -> Iterator[Callable[[int], object]]:
    """A progress bar, which is told how many more are done."""
    with tqdm.tqdm(
        total=total, desc=description, dynamic_ncols=True, disable=disable
    ) as shown:
        yield shown.update
