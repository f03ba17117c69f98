"""A retriever that is trained with its reader: how it starts, asks, and is kept."""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from rlm_jax import processes
from rlm_jax.data import contrastive
from rlm_jax.data.batching import Batch
from rlm_jax.data.passages import Passages
from rlm_jax.data.text_encoding import TextTokenizer
from rlm_jax.errors import UserError
from rlm_jax.evaluate.answers import has_answer
from rlm_jax.method import Batches, Method, Neighbours, Params, Rows
from rlm_jax.models.encoder import EncoderConfig, embedder
from rlm_jax.recipes.readers.problems import Problems, Source
from rlm_jax.recipes.stale_training import Judge
from rlm_jax.retrieval import encode_stream, index
from rlm_jax.retrievers import dense, encoder_towers, published_index
from rlm_jax.retrievers.dense import SearchConfig
from rlm_jax.retrievers.encoder_towers import TextConfig, Tower, Towers
from rlm_jax.train import fit, parallel
from rlm_jax.train import step as step_lib


def initial_tower(
    wanted: EncoderConfig,
    init_from: str,
    passages: Passages,
    *,
    vocab_size: int,
    seed: int,
    folder: pathlib.Path,
) -> Tower:
    """The encoder that learns, as it starts: a folder's, or from scratch.

    Args:
      wanted: sizes, where there is nothing to start from.
      init_from: the encoder's folder; empty: none.
      vocab_size, seed: of one from scratch.
      folder: keeps the tokenizer.
    """
    if init_from:
        return encoder_towers.load(init_from, wanted)
    tokenizer = encoder_towers.train_tokenizer(passages, vocab_size, folder)
    encoder = encoder_towers.fitted_to(wanted, tokenizer)
    init = jax.jit(embedder(encoder).init)
    return Tower(encoder, jax.device_get(init(jax.random.key(seed))), tokenizer)


def of_towers(params: Params, towers: str) -> Params:
    """One encoder's parameters as those of a method's retriever, shared or separate."""
    if towers == "shared":
        return params
    return {"question": params, "passage": params}


def towers_of(tower: Tower, params: Params, towers: str) -> Towers:
    """The encoders of a method's retriever."""
    if towers == "shared":
        both = tower._replace(params=params)
        return Towers(both, both)
    return Towers(
        *(tower._replace(params=params[name]) for name in ("question", "passage"))
    )


def publish(
    folder: pathlib.Path,
    passages: Passages,
    text: TextConfig,
    search: SearchConfig,
    towers: Towers,
) -> pathlib.Path:
    """Encodes the collection, and leaves a retriever that can be named; its folder."""
    made_by = encode_stream.fingerprint(towers.passage.params)
    vectors = f"vectors-{made_by[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    dense.encode_collection(
        towers.passage, passages, passages.fingerprint, text, search, folder / vectors
    )
    published_index.keep_trained(folder, passages, text, search, towers, vectors)
    return folder


def depth(k: int, most_own: int, passages: Passages) -> int:
    """Candidates to be searched for, so that k are left without own ones.

    Raises:
      UserError: there are not so many passages.
    """
    if len(passages) < k + most_own:
        raise UserError(
            f"There are {len(passages)} passages, and {k} are to be read beside "
            f"{most_own} that may not be: give more passages, or read fewer."
        )
    return k + most_own


def without_own(
    candidates: np.ndarray, own: Sequence[np.ndarray], k: int
) -> np.ndarray:
    """The first k candidates of each problem, int32 [B, k], but for its own passages.

    The released Atlas puts own passages behind the others where these are too few; here
    they are never read.
    """
    found = Neighbours(np.zeros(candidates.shape, np.float32), candidates)
    pairs = zip(candidates, own, strict=True)
    is_own = np.stack([np.isin(row, members) for row, members in pairs])
    return index.first_kept(found, lambda ids: ~is_own, k).ids


class RetrieverRows:
    """What an encoder that is trained reads: questions and passages in its tokens."""

    def __init__(
        self,
        passages: Passages,
        tokenizer: TextTokenizer,
        encoder: EncoderConfig,
        text: TextConfig,
    ):
        self._text = encoder_towers.cut(text, encoder)
        self._tokenizer = tokenizer
        to_rows = encoder_towers.passage_rows(tokenizer, self._text)

        @functools.lru_cache(maxsize=1 << 16)
        def row_of(passage: int) -> np.ndarray:
            return to_rows([passages[passage]])[0]

        self._row_of: Callable[[int], np.ndarray] = row_of

    def __call__(self, texts: Sequence[str], ids: np.ndarray) -> Batch:
        """query_ids, query_mask, candidate_ids, candidate_mask and present.

        Args:
          texts: B questions.
          ids: int32 [B, K], the passages; -1 = absent.
        """
        text, tokenizer = self._text, self._tokenizer
        asked = tokenizer.encode(list(texts), max_length=text.question_length)
        passages = contrastive.padded(
            "candidate",
            [self._row_of(max(row, 0)) for row in ids.reshape(-1).tolist()],
            text.passage_length,
            tokenizer.pad_id,
        )
        return {
            **contrastive.padded(
                "query", asked, text.question_length, tokenizer.pad_id
            ),
            **{n: x.reshape(*ids.shape, -1) for n, x in passages.items()},
            "present": ids >= 0,
        }


BatchOf = Callable[[Problems, np.ndarray], Batch]
"""(problems, int32 [B, K] that they read) -> the batch of reader and retriever."""


def batches(source: Source, rows: RetrieverRows) -> BatchOf:
    """What `methods.atlas` reads of problems and passages."""

    def batch_of(drawn: Problems, ids: np.ndarray) -> Batch:
        made = drawn.batch(source.tokenizer, source.tokens, ids, source.lengths)
        return {**made, **rows(drawn.texts, ids)}

    return batch_of


def judge(
    method: Method,
    texts: Sequence[str],
    own: Sequence[np.ndarray],
    batch_of: Callable[[np.ndarray, np.ndarray], Batch],
    passages: Passages,
    answers: Sequence[Sequence[str]] | None,
    *,
    k: int,
    asked: int,
    batch_size: int,
) -> Judge | None:
    """By what training is judged: the method's own figures, and answer recall.

    Args:
      texts: what each problem asks the index; without any there is nothing to judge by.
      own: of each the passages that may not be read.
      batch_of: (places of problems, int32 [B, K] that they read) -> the method's batch.
      answers: of each problem; None: not known.
      k: passages that are read, among which answers are looked for.
      asked: candidates of each problem that the method gets.
    """
    number = len(texts)
    if not number:
        return None
    run = parallel.parallelise(
        functools.partial(step_lib.eval_step, method=method), donate=False
    )

    def figures(params: Params, found: np.ndarray) -> Mapping[str, float]:
        ids = without_own(found, own, asked)

        def batch_at(seed: int, step: int, *, rows: Rows | None = None) -> Batch:
            del seed
            places = np.arange(batch_size)[rows if rows is not None else slice(None)]
            places = places + step * batch_size
            filled = np.minimum(places, number - 1)
            made = batch_of(filled, ids[filled])
            return {**made, "weight": made["weight"] * (places < number)}

        judged = Batches(batch_at, number, -(-number // batch_size))
        told = dict(fit.figures_of(run, judged, batch_size)(params))
        if answers is not None:
            right = [
                any(has_answer(passages[i].joined, own) for i in row if i >= 0)
                for row, own in zip(ids[:, :k].tolist(), answers, strict=True)
            ]
            told["answer_recall"] = float(np.mean(right))
        return told

    return Judge(texts, figures)


def keep_tokenizer(folder: pathlib.Path, tokenizer: TextTokenizer) -> None:
    """As `encoder_towers.keep_tokenizer`, in a folder that may not be there yet."""
    if processes.is_first():
        folder.mkdir(parents=True, exist_ok=True)
    encoder_towers.keep_tokenizer(folder, tokenizer)
