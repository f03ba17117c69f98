"""Salient spans: what of a sentence takes knowledge of the world to fill in.

Guu et al. 2020 (REALM), section 3.4, mask named entities and dates. They had a tagger;
these rules need nothing but the collection: dates, numbers, and runs of capitalised
words that the collection seldom writes in lower case. A rule is a function from a text
to the places of its spans, and any such function may stand beside these or in place of
them.
"""

import collections
import functools
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlm_jax import characters
from rlm_jax.data.passages import Passages
from rlm_jax.storage import cache, sealed

_FORMAT = 2

Span = tuple[int, int]
"""First character and the one after the last."""

Rule = Callable[[str], list[Span]]

_MONTH = (
    "(?:January|February|March|April|May|June|July|August|September|October|November"
    "|December)"
)
_YEAR = r"(?:1\d{3}|20\d{2})"
# Of a script without blanks, what touches a word or a figure is no part of it.
_TOUCHES = rf"[^\W{characters.unspaced()}]"
_BEGINS, _ENDS = rf"(?<!{_TOUCHES})", rf"(?!{_TOUCHES})"
_DATE = re.compile(
    rf"{_BEGINS}(?:\d{{1,2}} {_MONTH}(?:,? {_YEAR})?"
    rf"|{_MONTH}(?: \d{{1,2}}(?:,? {_YEAR})?|,? {_YEAR})"
    rf"|{_YEAR}s?){_ENDS}"
)
_NUMBER = re.compile(
    rf"{_BEGINS}(?<!\.)(?:[$£€] ?)?\d+(?:,\d{{3}})*(?:\.\d+)?"
    rf"(?: ?(?:%|percent|million|billion))?{_ENDS}"
)
_JOINING = frozenset("of the de la le du da di von van der del".split())
_START = re.compile(r"(?:^|[.!?]['\"”]?\s+|\n\s*)['\"“(]?$")
# A full stop, then what is not in lower case; one of a script without blanks; a line.
_SENTENCE = re.compile(
    r"(?<=[.!?؟۔।॥])['\"”)]?\s+(?=['\"“(]?([^\W_]))"
    r"|(?:(?<=[。！？])|(?<=[。！？][」』”)]))(?![。！？」』”)])\s*|\n+"
)


@functools.cache
def _word() -> re.Pattern[str]:
    """Runs of letters with their marks; a possessive is no part of one: Toronto's."""
    run = rf"(?:[^\W\d_{characters.unspaced()}][{characters.marks()}]*)+"
    return re.compile(rf"{run}(?:(?!['’]s\b)['’.-]{run})*")


def dates(text: str) -> list[Span]:
    """12 May 1943, May 12, 1943, May 1943, 1943 and 1940s."""
    return [match.span() for match in _DATE.finditer(text)]


def numbers(text: str) -> list[Span]:
    """Figures, with their thousands, fractions, currency, percent, million."""
    return [match.span() for match in _NUMBER.finditer(text)]


@dataclass(frozen=True)
class Casing:
    """How often a collection writes each word with a capital, inside sentences or not.

    Attributes:
      lower: word in lower case -> how often it stands so.
      capital: word in lower case -> how often it begins with a capital.
    """

    lower: dict[str, int]
    capital: dict[str, int]

    def is_name(self, word: str, most: float) -> bool:
        """Whether at most a share ``most`` of its occurrences are in lower case."""
        low = self.lower.get(word.lower(), 0)
        return low <= most * (low + self.capital.get(word.lower(), 0))


def casing(texts: Iterable[str]) -> Casing:
    """Counts the words of a collection, read once."""
    lower: collections.Counter[str] = collections.Counter()
    capital: collections.Counter[str] = collections.Counter()
    for text in texts:
        for word in _word().findall(text):
            (capital if word[0].isupper() else lower)[word.lower()] += 1
    return Casing(dict(lower), dict(capital))


def names(counted: Casing, *, most: float = 0.1) -> Rule:
    """The rule of names: runs of capitalised words, seldom written in lower case.

    Small words (of, de, von) join two of them. A word at the start of a sentence is
    capital whatever it is, so it begins a run only if it is seldom in lower case;
    inside a run any capitalised word stays.

    Args:
      counted: `casing` of the collection.
      most: the share of lower case, at most, of the words that make a run a name.
    """

    def rule(text: str) -> list[Span]:
        found: list[Span] = []
        run: list[re.Match[str]] = []
        joining: list[re.Match[str]] = []

        def close() -> None:
            if any(counted.is_name(word.group(), most) for word in run):
                found.append((run[0].start(), run[-1].end()))
            run.clear()
            joining.clear()

        end = 0
        for word in _word().finditer(text):
            gap = text[end : word.start()]
            end = word.end()
            if run and gap not in (" ", "-", "–"):
                close()
            if word.group()[0].isupper():
                common = not counted.is_name(word.group(), most)
                if not run and common and _START.search(text[: word.start()]):
                    continue
                run += [*joining, word]
                joining.clear()
            elif run and word.group() in _JOINING:
                joining.append(word)
            else:
                close()
        close()
        return found

    return rule


def rules_of(texts: Iterable[str]) -> tuple[Rule, ...]:
    """The rules of this file, names by the casing of a collection."""
    return dates, names(casing(texts)), numbers


def rules_of_passages(
    passages: Passages, *, cache_dir: str | os.PathLike | None = None
) -> tuple[Rule, ...]:
    """`rules_of` a collection, whose casing is counted once and cached."""
    key = cache.fingerprint("casing", _FORMAT, passages.fingerprint)
    folder = cache.folder("casing", key, cache_dir)

    def build(there: Path) -> None:
        counted = casing(passage.text for passage in passages)
        told = {"lower": counted.lower, "capital": counted.capital}
        sealed.write(there / "counts.json", told, indent=None)

    counts = dict[str, int]
    told = cache.read_sealed(
        cache.once(folder, build), "counts.json", {"lower": counts, "capital": counts}
    )
    return dates, names(Casing(told["lower"], told["capital"])), numbers


def salient(text: str, rules: Sequence[Rule]) -> list[Span]:
    """The spans of all rules in their order in the text, none overlapping another.

    Of two that overlap, that of the earlier rule stays.
    """
    kept: list[Span] = []
    for rule in rules:
        for start, stop in rule(text):
            if all(stop <= a or b <= start for a, b in kept):
                kept.append((start, stop))
    return sorted(kept)


def sentences(text: str) -> list[Span]:
    """Where each sentence stands, by its full stop and the capital after it.

    In scripts that have neither capitals nor blanks, by its full stop alone.
    """
    found = (
        match
        for match in _SENTENCE.finditer(text)
        if "\n" in match[0] or not (match[1] or "").islower()
    )
    bounds = [(m.start(), m.end()) for m in found]
    starts = [0, *(end for _, end in bounds)]
    stops = [*(start for start, _ in bounds), len(text)]
    spans = zip(starts, stops, strict=True)
    return [(a, b) for a, b in spans if text[a:b].strip()]
