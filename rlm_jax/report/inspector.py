"""The neighbour inspector: one HTML page that shows what a memory answered, and why."""

import html
import math
import os
from collections.abc import Sequence
from importlib import resources
from typing import NamedTuple

from rlm_jax import characters
from rlm_jax.errors import UserError


class Neighbour(NamedTuple):
    """One neighbour of a position, in text."""

    context: str
    """Text to the left of the stored token: what the key saw."""
    value: str | None
    """The stored token, the one the neighbour votes for; None for a whole document."""
    score: float
    """Similarity before temperature; larger is nearer."""
    weight: float
    """Share of the retrieval distribution, 0 to 1."""
    source: str = ""
    """Where the neighbour stands: a document, a position."""


class Position(NamedTuple):
    """One predicted token: three probabilities and the neighbours, nearest first."""

    context: str
    """Text to the left of the target: what the query saw."""
    target: str
    p_lm: float
    """Probability of the target by the language model alone."""
    p_knn: float | None
    """By the neighbours (or the memory) alone; None where they do not predict alone."""
    p: float
    """Probability of the target by both together."""
    neighbours: Sequence[Neighbour]
    source: str = ""


def page(positions: Sequence[Position], *, title: str, caption: str = "") -> str:
    """A self-contained HTML page: no scripts, no files beside it, works offline.

    Args:
      positions: the positions to show, in order.
      title: of the page, as "TRIME on stdlib, tiny".
      caption: a sentence or two under the title: model, memory, how these positions
        were chosen.
    """
    style = (
        resources.files("rlm_jax.report").joinpath("inspector.css").read_bytes()
    ).decode()
    cards = "\n".join(
        _card(number, position) for number, position in enumerate(positions, 1)
    )
    caption = f"<p class=caption>{_escaped(caption)}</p>" if caption else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_escaped(title)}</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{_escaped(title)}</h1>
{caption}
<p class=key><b class=target>target</b> the token to predict
<b class=hit>value</b> a neighbour that votes for it
<b class=miss>value</b> a neighbour that votes for another token</p>
</header>
<main>
{cards}
</main>
</body>
</html>
"""


def write(
    path: str | os.PathLike,
    positions: Sequence[Position],
    *,
    title: str,
    caption: str = "",
) -> None:
    """Write `page` to a file.

    Raises:
      UserError: the file cannot be written.
    """
    text = page(positions, title=title, caption=caption)
    try:
        characters.write(path, text)
    except OSError as error:
        raise UserError(
            f"Cannot write {path} ({error.strerror}): "
            "free space there or choose another --workdir."
        ) from error


def _card(number: int, position: Position) -> str:
    gain = _gain(position)
    bars = "\n".join(
        f"<dt>{label}</dt><dd><i style='width:{100 * min(max(p, 0.0), 1.0):.2f}%' "
        f"class={kind}></i><span>{_probability(p)}</span></dd>"
        for label, kind, p in (
            ("model alone", "lm", position.p_lm),
            ("neighbours alone", "knn", position.p_knn),
            ("together", "both", position.p),
        )
        if p is not None
    )
    rows = "\n".join(
        _row(rank, neighbour, position.target)
        for rank, neighbour in enumerate(position.neighbours, 1)
    )
    if not rows:
        rows = "<tr><td colspan=4 class=none>no neighbours</td></tr>"
    return f"""<section id="position-{number}">
<h2><a href="#position-{number}">{number}</a>
<small>{_escaped(position.source)}</small><em class={gain[0]}>{gain[1]}</em></h2>
<p class=text>{_visible(position.context)}<b class=target>{_token(position.target)}</b>
</p>
<dl>
{bars}
</dl>
<table>
<thead><tr><th>#</th><th>neighbour</th><th>score</th><th>weight</th></tr></thead>
<tbody>
{rows}
</tbody>
</table>
</section>"""


def _row(rank: int, neighbour: Neighbour, target: str) -> str:
    value = ""
    if neighbour.value is not None:
        kind = "hit" if neighbour.value == target else "miss"
        value = f"<b class={kind}>{_token(neighbour.value)}</b>"
    source = _escaped(neighbour.source)
    source = f"<small>{source}</small>" if source else ""
    width = 100 * min(max(neighbour.weight, 0.0), 1.0)
    return (
        f"<tr><td>{rank}</td><td class=text>{_visible(neighbour.context)}"
        f"{value}{source}</td>"
        f"<td>{neighbour.score:.2f}</td>"
        f"<td class=weight><i style='width:{width:.1f}%'></i>"
        f"<span>{100 * neighbour.weight:.1f}%</span></td></tr>"
    )


def _gain(position: Position) -> tuple[str, str]:
    """CSS class and words for log p - log p_lm."""
    if position.p <= 0 or position.p_lm <= 0:
        return "even", ""
    nats = math.log(position.p / position.p_lm)
    kind = "helped" if nats > 0.005 else "hurt" if nats < -0.005 else "even"
    words = {
        "helped": "retrieval helped",
        "hurt": "retrieval hurt",
        "even": "no change",
    }
    return kind, f"{words[kind]} {nats:+.2f} nats".replace("-", "−")


def _probability(p: float) -> str:
    return f"{100 * p:.2f}%" if p >= 1e-4 or p == 0 else f"{100 * p:.1e}%"


def _escaped(text: str) -> str:
    """Text of HTML that commands neither the page nor its direction."""
    return html.escape(characters.visible(text))


def _visible(text: str) -> str:
    """Escaped text; line breaks stay, as a mark that can be seen."""
    return _escaped(text).replace("\n", "<s>↵</s>\n")


def _token(text: str) -> str:
    """Escaped token in which blanks can be seen; an empty one is the empty set."""
    marked = _escaped(text).replace("\n", "↵").replace("\t", "⇥")
    return marked.replace(" ", "·") or "∅"
