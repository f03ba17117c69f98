"""Encoders that are trained over a collection: how they start, read, and are kept."""

import functools
import pathlib
from collections.abc import Callable, Sequence

import jax
import numpy as np

from rlm_jax.data import contrastive
from rlm_jax.data.batching import Batch
from rlm_jax.data.passages import Passages
from rlm_jax.data.text_encoding import TextTokenizer
from rlm_jax.errors import UserError
from rlm_jax.method import Neighbours, Params
from rlm_jax.models.encoder import EncoderConfig, embedder
from rlm_jax.retrieval import encode_stream, index
from rlm_jax.retrievers import dense, encoder_towers, published_index
from rlm_jax.retrievers.dense import SearchConfig
from rlm_jax.retrievers.encoder_towers import TextConfig, Tower, Towers


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


class TextRows:
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

    def __call__(
        self,
        texts: Sequence[str],
        ids: np.ndarray,
        *,
        name: str = "candidate",
        keep: str = "first",
    ) -> Batch:
        """query_ids, query_mask, <name>_ids, <name>_mask and present.

        Args:
          texts: B questions.
          ids: int32 [B, K], the passages; -1 = absent.
          name: of passages.
          keep: of a question that is too long its first tokens or its last.
        """
        text, tokenizer = self._text, self._tokenizer
        asked = encoder_towers.question_rows(
            tokenizer, texts, text.question_length, text, keep=keep
        )
        passages = contrastive.padded(
            name,
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
