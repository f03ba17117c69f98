"""What kNN-LM adds to a published model, by the size of its datastore, with controls.

    python -m benchmarks.knn_sizes --decoder FILE.gguf --text FOLDER --keys FOLDER

The text is a folder of train.txt, valid.txt and test.txt (or .txt.gz), such as
WikiText-2: one stream each, in windows of 512 tokens. Keys are the states over its
first training tokens, exactly as those of `search_token_keys`, whose ``--keys`` can be
taken. A datastore of a tenth holds the first tenth of them. For each size k,
temperature and lambda are chosen on the first validation tokens, and told of the first
test tokens beside the controls of every run (evaluate.token_search); search is exact.
Nothing is trained. Encoding is most of the time, and goes on where it was killed.

This is `experiments.knn_lm` but for the documents' ends: the text is one document.
"""

import argparse
import gzip
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks import record, search_token_keys
from benchmarks.search_token_keys import Text
from rlm_jax.data.tokenizers import Tokenizer
from rlm_jax.errors import UserError
from rlm_jax.evaluate import knn, token_search
from rlm_jax.evaluate.token_search import Searched
from rlm_jax.methods import lm
from rlm_jax.recipes import base_lm
from rlm_jax.recipes.language_model import DataConfig
from rlm_jax.report import plot_style
from rlm_jax.retrieval import exact

SHARES, NUM_KEYS, WINDOW = (0.1, 0.3, 1.0), 600_000, search_token_keys.WINDOW
TUNED_ON, TOLD_OF, K = 4096, 16_384, 256
GRID = {
    "ks": (16, 64, 256),
    "temperatures": (3.0, 10.0, 30.0, 100.0),
    "weights": (0.1, 0.2, 0.25, 0.3, 0.4, 0.5),
}
CONTROLS = {"real": "kNN-LM", "shuffled": "values shuffled", "foreign": "foreign"}
QUICK_KEYS, QUICK_TOKENS = 2048, 256


def read(folder: str, split: str) -> str:
    """A split's text; empty where there is none."""
    for path in (Path(folder) / f"{split}.txt", Path(folder) / f"{split}.txt.gz"):
        if path.is_file():
            opened = gzip.open if path.suffix == ".gz" else open
            with opened(path, "rt", encoding="utf-8") as file:
                return file.read()
    raise UserError(f"There is no {split}.txt in {folder}; name another --text.")


def streams(tokenizer: Tokenizer, folder: str) -> dict[str, np.ndarray]:
    """The tokens of each split, by blocks of lines as in `search_token_keys`."""
    return {
        split: search_token_keys.encoded(tokenizer.encode, read(folder, split))
        for split in ("train", "valid", "test")
    }


def measure(quick: bool, options: argparse.Namespace) -> dict[str, Any]:
    start = time.perf_counter()
    if options.decoder:
        model = base_lm.load(options.decoder, DataConfig())
        assert model.decoding is not None
        score = lm.decoder_functions(model.decoding.config)[1]
        params = model.decoding.params
        tokens = streams(model.tokenizer, options.text)
    else:
        made = search_token_keys.made_here()
        score, params = made.score, made.params
        tokens = dict.fromkeys(("train", "valid", "test"), made.tokens)
    count = QUICK_KEYS if quick else options.num_keys
    tuned_on, told_of = (QUICK_TOKENS,) * 2 if quick else (TUNED_ON, TOLD_OF)
    text = Text(score, params, tokens["train"])
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.keys or temporary)
        store = search_token_keys.keys_of(text, count, WINDOW, folder / "keys")
        limits: dict[Literal["valid", "test"], int]
        limits = {"valid": tuned_on, "test": told_of}
        scored = {
            split: search_token_keys.score(text, tokens[split][: limit + 1], WINDOW)
            for split, limit in limits.items()
        }
        whole = store.keys(0, store.num_entries)
        sizes = [round(share * store.num_entries) for share in SHARES]
        found = {size: one_size(store, whole[:size], scored) for size in sizes}
    off = figure(scored["test"].log_probs)
    figures = {
        "decoder": Path(options.decoder).name or "random weights",
        "text": Path(options.text).name,
        "window": WINDOW,
        "tokens": {"tuned": tuned_on, "told": told_of},
        "perplexity": off,
        "sizes": found,
        "gain": {size: round(1 - x["real"] / off, 4) for size, x in found.items()},
        "seconds": round(time.perf_counter() - start),
    }
    if options.plot:
        draw(figures, options.plot)
    return figures


def one_size(store: Any, keys: np.ndarray, scored: dict) -> dict[str, Any]:
    """The perplexity of test with the first keys, and under each control."""
    first: Any = First(store, len(keys))
    searched = Searched(first, exact.build(keys, metric="l2"), K, "l2", 1.0)
    found, _ = token_search.look_up(scored["valid"], searched, recompute=True)
    stream = scored["valid"]
    chosen = knn.tune(stream.log_probs, found, stream.targets, **GRID)
    stream = scored["test"]
    found, ids = token_search.look_up(stream, searched, recompute=True)
    perplexities = {}
    for name, one in token_search.by_control(found, ids, searched.keys).items():
        spoken = knn.knn_log_probs(
            one, stream.targets, k=chosen.k, temperature=chosen.temperature
        )
        perplexities[name] = figure(knn.mix(stream.log_probs, spoken, chosen.weight))
    print(len(keys), chosen, perplexities, flush=True)
    return {**chosen._asdict(), **perplexities}


class First:
    """The first entries of a datastore, as one that holds no others."""

    def __init__(self, store: Any, num_entries: int):
        """Of ``store``, ``num_entries``."""
        self.num_entries, self.dim = num_entries, store.dim
        self.values, self.gather_keys = store.values, store.gather_keys


def draw(figures: Mapping[str, Any], path: str) -> None:
    """The perplexity of each size, as ``measure`` gives it, beside its controls."""
    sizes = [int(size) for size in figures["sizes"]]
    with plot_style.canvas(path, 6, 3.2) as (_, axes):
        axes.axhline(figures["perplexity"], color=plot_style.GREY, linestyle="--")
        beside = {"textcoords": "offset points", "xytext": (6, 4)}
        axes.annotate("the model alone", (sizes[1], figures["perplexity"]), **beside)
        for name, colour in zip(CONTROLS, plot_style.PALETTE, strict=False):
            values = [one[name] for one in figures["sizes"].values()]
            axes.plot(sizes, values, marker="o", color=colour, label=CONTROLS[name])
            axes.annotate(f"{values[-1]:.1f}", (sizes[-1], values[-1]), **beside)
        axes.set_xscale("log")
        axes.set_xlim(right=1.2 * sizes[-1])
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes], minor=False)
        axes.set_xticks([], minor=True)
        axes.set(xlabel="tokens in the datastore", ylabel="perplexity")
        axes.set_title(f"{figures['decoder']} on {figures['text']}, not trained")
        axes.legend()


def figure(log_probs: np.ndarray) -> float:
    mean = float(np.mean(log_probs, dtype=np.float64))
    return round(float(np.exp(-mean)), 3)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--decoder", default="", help="GGUF file, or folder")
    parser.add_argument("--text", default="", help="folder of train, valid and test")
    parser.add_argument("--keys", default="", help="folder that keys stay in")
    parser.add_argument("--plot", default="", help="image to draw")
    parser.add_argument("--num-keys", type=int, default=NUM_KEYS)
    record.with_options(
        "knn_sizes",
        parser,
        measure,
        told=("decoder", "text", "num_keys"),
        needs="decoder",
    )
