"""Search among the token keys of a language model: ScaNN, faiss's IVF-PQ, exact search.

    python -m benchmarks.search_token_keys --decoder FOLDER --text FILE

The decoder is a Hugging Face folder with its tokenizer.json; its states over the text's
first tokens are the keys (float16), and those over the tokens that follow the queries:
2,048 on which ScaNN is tuned, as the launchers do, and the others, by which it is
judged for each k.
Such states have a strong mean, coordinates that dominate and a few very long keys,
which the jittered sentence vectors of search_at_scale do not have. Encoding is most of
the time: keys stay in ``--keys``, and a killed run goes on from there. With ``--quick``
the decoder is a small one of random weights, if none is given.

faiss is tuned on 1,000 of the queries by which both are judged, to the recall that
ScaNN has at k = 64, and searches in turn with it, with as many threads; see
search_at_scale.
Recall counts what is as near as the k-th nearest: states of windows' first tokens are
equal where the tokens are. Evaluation is what kNN-LM adds to a forward pass: search,
similarities recomputed from the stored keys, and the mixture, on the same tokens.
"""

import argparse
import tempfile
import time
import zlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import record
from benchmarks.search_at_scale import PEERS, Faiss
from rlm_jax import pretrained
from rlm_jax.evaluate import knn, perplexity
from rlm_jax.method import Neighbours
from rlm_jax.methods import lm
from rlm_jax.models.decoder import modern
from rlm_jax.retrieval import auto_index, datastore, encode_stream, exact, scann
from rlm_jax.retrieval import rotation as rotations
from rlm_jax.retrieval.index import TARGET_RECALL, recall

KS = (1, 10, 64, 1024)
K = 64  # of the comparison with faiss and of the evaluation
NUM_KEYS, TUNED_ON, NUM_QUERIES, WINDOW, BATCH = 600_000, 2048, 4096, 512, 4
QUICK_KEYS, QUICK_TUNED_ON, QUICK_QUERIES, QUICK_WINDOW = 6000, 256, 256, 64
NUM_COMPARED = 1000  # queries, with faiss
WITHIN = 0.005  # of the target recall
_LINES = 2000  # of the text, tokenised at a time


class Text(NamedTuple):
    """A decoder's score function and parameters, and the text's tokens."""

    score: Any
    params: Any
    tokens: np.ndarray


def read(decoder: str, text: str) -> Text:
    """The decoder of a folder, with the text in its tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(decoder) / "tokenizer.json"))
    config, params = pretrained.load_decoder(decoder)
    tokens = encoded(lambda part: tokenizer.encode(part).ids, Path(text).read_text())
    return Text(lm.decoder_functions(config)[1], params, tokens)


def encoded(encode: Callable[[str], Any], text: str) -> np.ndarray:
    """The tokens of a text, some of its lines at a time, int32."""
    lines, ids = text.split("\n"), []
    for i in range(0, len(lines), _LINES):
        ids.extend(encode("\n".join(lines[i : i + _LINES]) + "\n"))
    return np.array(ids, np.int32)


def made_here() -> Text:
    """A small decoder of random weights that reads this file's bytes."""
    config = modern(
        vocab_size=256, num_layers=2, width=32, num_heads=2, max_length=QUICK_WINDOW
    )
    init, score = lm.decoder_functions(config)
    source = Path(__file__).read_bytes() * 4
    return Text(
        score, jax.jit(init)(jax.random.key(0)), np.frombuffer(source, np.uint8)
    )


def keys_of(text: Text, count: int, window: int, folder: Path) -> datastore.Datastore:
    """The first ``count`` tokens' states, encoded or opened."""
    return encode_stream.build_datastore(
        lambda params, batch: text.score(params, batch).keys,
        text.params,
        text.tokens[: count + 1],
        folder,
        window=window,
        stride=window,
        batch_size=BATCH,
        identity={
            "model": encode_stream.fingerprint(text.params),
            "text": f"{zlib.crc32(text.tokens.tobytes()):08x}",
        },
        shard_size=1 << 14,
    )


def searched(
    store: datastore.Datastore,
    tuned_on: np.ndarray,
    queries: np.ndarray,
    metric: str,
    folder: Path,
) -> tuple[Any, Neighbours, dict[str, Any]]:
    """The index of a metric, the exact neighbours, and what it cost and finds."""
    index: Any = auto_index.choose(
        store, metric, kind="scann", directory=folder, queries=tuned_on
    )
    index.searcher.set_num_threads(record.num_cores())
    truth = exact.build(store, metric=metric).search(queries, max(KS))
    figures = {
        "num_leaves": index.parameters.num_leaves,
        "efforts": [one._asdict() for one in index.parameters.efforts],
        "build_seconds": index.seconds,
        "ks": {},
    }
    equal = rotations.rounding(index.rotation, queries, truth.scores)
    for k in KS:
        start = time.perf_counter()
        found = index.search(queries, k)
        seconds = time.perf_counter() - start
        figures["ks"][k] = {
            "recall": recall(found, first(truth, k), equal),
            "queries_per_second": round(len(queries) / seconds, 1),
        }
    print(metric, figures["ks"], flush=True)
    return index, truth, figures


def first(found: Neighbours, k: int, rows: int | None = None) -> Neighbours:
    return Neighbours(found.scores[:rows, :k], found.ids[:rows, :k])


def against_faiss(
    index: scann.ScannIndex,
    keys: np.ndarray,
    queries: np.ndarray,
    truth: Neighbours,
) -> dict[str, Any]:
    """How many times faster ScaNN is than each of faiss's at the same recall."""
    figures = {}
    queries, truth = queries[:NUM_COMPARED], first(truth, K, NUM_COMPARED)
    target = recall(index.search(queries, K), truth)  # by ids, as faiss is judged
    for name, coding in PEERS.items():
        peer = Faiss(
            keys, index.parameters.num_leaves, record.num_cores(), *coding, index.metric
        )
        tuned = peer.tune(queries, truth, target)
        spent = record.interleaved(
            {
                name: record.timed(lambda peer=peer: peer.search(queries, K)),
                "scann": record.timed(lambda: index.search(queries, K)),
            },
            rounds=5,
        )
        figures[name] = {
            "build_seconds": peer.build_seconds,
            **tuned,
            "scann_is_faster": spent["ratio"]["median"],
            "quartiles": spent["ratio"]["quartiles"],
            "queries_per_second": {
                side: round(len(queries) / seconds, 1)
                for side, seconds in spent["seconds"].items()
            },
        }
        print(name, figures[name], flush=True)
    return figures


def evaluation(
    text: Text,
    stream: perplexity.StreamScores,
    tokens: np.ndarray,
    store: datastore.Datastore,
    index: Any,
    window: int,
) -> dict[str, Any]:
    """kNN-LM's evaluation of the queries' tokens over their forward pass."""
    values = store.values(0, store.num_entries)

    def forward() -> np.ndarray:
        return score(text, tokens, window).log_probs

    def memory() -> np.ndarray:
        found = knn.look_up(
            index.search,
            stream.keys,
            K,
            values=values,
            gather_keys=store.gather_keys,
        )
        neighbours = knn.knn_log_probs(found, stream.targets, k=K, temperature=10.0)
        return knn.mix(stream.log_probs, neighbours, 0.25)

    mixed = memory()
    spent = record.interleaved(
        {"memory": record.timed(memory), "forward": record.timed(forward)}, rounds=3
    )
    return {
        "tokens": len(stream.targets),
        "forward_seconds": spent["seconds"]["forward"],
        "memory_seconds": spent["seconds"]["memory"],
        "over_forward": round(1 + spent["ratio"]["median"], 3),
        "perplexity": round(float(np.exp(-stream.log_probs.mean())), 3),
        "perplexity_knn_lm": round(float(np.exp(-mixed.mean())), 3),
    }


def score(text: Text, tokens: np.ndarray, window: int) -> perplexity.StreamScores:
    return perplexity.score_stream(
        text.score,
        text.params,
        tokens,
        window=window,
        stride=window,
        batch_size=BATCH,
    )


def measure(quick: bool, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    window = QUICK_WINDOW if quick else WINDOW
    count = QUICK_KEYS if quick else options.num_keys
    text = read(options.decoder, options.text) if options.decoder else made_here()
    store = keys_of(text, count, window, folder / "keys")
    sample, judged = (
        (QUICK_TUNED_ON, QUICK_QUERIES) if quick else (TUNED_ON, NUM_QUERIES)
    )
    start = count + sample
    tuned_on = score(text, text.tokens[count : start + 1], window).keys
    tokens = text.tokens[start : start + judged + 1]
    stream = score(text, tokens, window)
    queries = stream.keys
    claims, figures = {}, {}
    floor = TARGET_RECALL - WITHIN
    for metric in ("l2", "ip"):
        index, truth, found = searched(
            store, tuned_on, queries, metric, folder / metric
        )
        for k in KS:
            claims[f"recall@{k} of ScaNN, {metric}"] = record.claim(
                found["ks"][k]["recall"], at_least=floor
            )
        if metric == "l2":
            if find_spec("faiss"):
                keys = store.keys(0, store.num_entries)
                peers = against_faiss(index, keys, queries, truth)
                found |= peers
                claims["queries/s at k 64, ScaNN / faiss IVF-PQ"] = record.claim(
                    peers["faiss IVF-PQ"]["scann_is_faster"], at_least=2.0
                )
            found["evaluation"] = evaluation(text, stream, tokens, store, index, window)
            claims["kNN-LM's evaluation / forward pass"] = record.claim(
                found["evaluation"]["over_forward"], at_most=2.0
            )
        figures[metric] = found
    return {
        "decoder": Path(options.decoder).name or "random weights",
        "text": Path(options.text).name,
        "entries": store.num_entries,
        "dim": store.dim,
        "num_queries": len(queries),
        "target_recall": TARGET_RECALL,
        "threads": record.num_cores(),
        "claims": claims,
        "search": figures,
    }


def in_folder(quick: bool, options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        return measure(quick, options, Path(options.keys or temporary))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--decoder", default="", help="Hugging Face folder")
    parser.add_argument("--text", default="", help="UTF-8 file")
    parser.add_argument("--keys", default="", help="folder that keys stay in")
    parser.add_argument("--num-keys", type=int, default=NUM_KEYS)
    record.with_options(
        "search_token_keys",
        parser,
        in_folder,
        told=("decoder", "text", "num_keys"),
        needs="decoder",
    )
