"""A corpus whose datastore can help: parts of articles, and what they were taken from.

    python -m rlm_jax.data.held_out_articles --articles=FILE --out=DIR [--words=N] \\
        --text CORPUS ..

Of every article one passage in four is held out as text to be predicted, a sixth of the
articles for validation and the others for test; the other passages are the datastore.
So documents treat the same subject as the text, and are never the text itself.

Writes ``DIR/text/{train,valid,test}.jsonl``, which is a corpus (``jsonl:DIR/text``),
and ``DIR/store.jsonl``, its passages.  A held-out text has a title of its own, so that
recipes do not take the store for a copy of it.  To train on there are the training
splits of other corpora (jsonl:PATH, text:PATH, ...), without the documents that share
13 words in a row with a held-out passage.

A language model that reads a hundred tokens of a document never sees the second half
of a longer one.  ``--words`` cuts the store's passages that short, without those that
share 13 words in a row with a held-out one, which could not be told from their pieces.
"""

import argparse
import itertools
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from rlm_jax import characters, terminal
from rlm_jax.data import corpora, overlap, passage_files
from rlm_jax.data.passage_files import Passage
from rlm_jax.errors import UserError

EVERY, HELD_OUT = 4, 2  # of an article's passages, number 2, 6, 10, ...
EVERY_ARTICLE, VALIDATION = 6, 5


def split(passages: Iterable[Passage]) -> dict[str, list[Passage]]:
    """Passages, those of an article in a row, to ``valid``, ``test`` and ``store``.

    A held-out article is one text: what was taken out of it, in its order.
    """
    by_split: dict[str, list[Passage]] = {"valid": [], "test": [], "store": []}
    articles = itertools.groupby(passages, key=lambda passage: passage.title)
    for number, (title, group) in enumerate(articles):
        every = list(group)
        kept = every[HELD_OUT::EVERY]
        name = "valid" if number % EVERY_ARTICLE == VALIDATION else "test"
        if kept:
            text = "".join(f"{passage.text}\n" for passage in kept)
            by_split[name].append(Passage(title, f"{title} (held out)", text))
        del every[HELD_OUT::EVERY]
        by_split["store"] += every
    return by_split


def pieces(passages: Iterable[Passage], num_words: int) -> Iterator[Passage]:
    """Passages in as few equal pieces as have at most ``num_words`` each.

    Pieces are numbered in their ids; white space becomes single spaces.
    """
    for passage in passages:
        text = " ".join(passage.text.split())
        begins = [match.start() for match in re.finditer(passage_files.WORD, text)]
        count = max(1, -(-len(begins) // num_words))
        bounds = [*begins, len(text)]
        bounds = [bounds[len(begins) * i // count] for i in range(count + 1)]
        for i, (start, stop) in enumerate(itertools.pairwise(bounds)):
            part = text[start:stop].rstrip()
            yield Passage(f"{passage.id}.{i}", passage.title, part)


def texts(names: Iterable[str]) -> Iterator[Passage]:
    """The documents of the corpora's training splits."""
    for name in names:
        for document in corpora.load(name).documents("train"):
            yield Passage(document.name, document.name, document.text)


def write(path: Path, passages: Iterable[Passage]) -> int:
    """Their number of characters, once they are written as JSON lines."""
    size = 0
    with open(path, "wb") as file:
        for passage in passages:
            line = characters.to_json(passage._asdict())
            file.write(characters.encode(f"{line}\n"))
            size += len(passage.text)
    return size


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m rlm_jax.data.held_out_articles", description=__doc__
    )
    parser.add_argument("--articles", type=Path, required=True, help="JSON lines")
    parser.add_argument("--text", nargs="+", required=True, help="corpora to train on")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument(
        "--words", type=int, help="at most, in a passage of the store; all without"
    )
    options = parser.parse_args(arguments)
    try:
        by_split = split(passage_files.jsonl(options.articles)[1])
        if not (by_split["valid"] and by_split["test"]):
            raise UserError(
                f"{options.articles} holds too few articles of {HELD_OUT + 1} passages "
                f"or more; it takes {EVERY_ARTICLE} of them."
            )
        if options.words is not None and options.words < 1:
            raise UserError(f"--words is {options.words}; choose 1 or more.")
        evaluated = [
            passage.text for name in ("valid", "test") for passage in by_split[name]
        ]
        shared = overlap.overlapping((x.text for x in texts(options.text)), evaluated)
        if options.words is not None:
            shows = overlap.overlapping((x.text for x in by_split["store"]), evaluated)
            kept = itertools.compress(by_split["store"], ~shows)
            by_split["store"] = list(pieces(kept, options.words))
            if not by_split["store"]:
                raise UserError(
                    "Every passage of the store shares 13 words in a row with a "
                    "held-out one; name other articles."
                )
        if shared.all():
            raise UserError(
                "Every training text shares 13 words in a row with a held-out passage; "
                "name other corpora with --text."
            )
        (options.out / "text").mkdir(parents=True)
        sizes = {
            "train": write(
                options.out / "text/train.jsonl",
                itertools.compress(texts(options.text), ~shared),
            )
        }
        for name in ("valid", "test"):
            sizes[name] = write(options.out / f"text/{name}.jsonl", by_split[name])
        sizes["store"] = write(options.out / "store.jsonl", by_split["store"])
    except UserError as error:
        parser.error(str(error))
    except FileExistsError:
        parser.error(f"There is something in {options.out} already; name a new folder.")
    for name, size in sizes.items():
        terminal.say(f"{name}: {size:,} characters")
    terminal.say(
        f"left out, for what they share with the held-out texts: {shared.sum():,}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
