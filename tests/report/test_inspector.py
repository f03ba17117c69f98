"""The neighbour page: well-formed, self-contained, and nothing in it is run."""

from html.parser import HTMLParser
from typing import Any

import pytest

from rlm_jax.errors import UserError
from rlm_jax.report import inspector
from rlm_jax.report.inspector import Neighbour, Position

EVIL = "<script>alert('x')</script> & \"quoted\""
VOID = {"meta", "br"}


class Page(HTMLParser):
    """Collects text and tags; fails where tags do not nest."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.attributes, self.open, self.words = [], [], [], []
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def position(**changes):
    fields: dict[str, Any] = dict(
        context=f"left {EVIL}\n",
        target=" x",
        p_lm=0.1,
        p_knn=0.8,
        p=0.4,
        neighbours=[
            Neighbour(f"seen {EVIL}", " x", 12.3456, 0.75, f"file {EVIL}"),
            Neighbour("other", "\n", -3.0, 0.25),
        ],
        source=f"doc {EVIL}",
    )
    return Position(**(fields | changes))


def test_everything_is_shown_and_nothing_is_run():
    page = Page(inspector.page([position()], title=EVIL, caption=EVIL))
    text = "".join(page.words)
    assert "script" not in page.tags
    # Title twice, caption, context, source, the neighbour's context and its source.
    assert text.count(EVIL) == 7
    for shown in ("10.00%", "80.00%", "40.00%", "12.35", "-3.00", "75.0%", "25.0%"):
        assert shown in text
    assert "retrieval helped +1.39 nats" in text


def test_what_turns_the_text_of_a_page_is_shown():
    command = "\x1b[2J \u202egnp.exe \u2067 \u200f \x9b"
    near = Neighbour(command, command, 1.0, 0.5, command)
    there = position(context=command, target=command, source=command, neighbours=[near])
    page = inspector.page([there], title=command, caption=command)
    assert not {c for c in page if not c.isprintable()} - {"\n"}
    # Title twice, caption, and twice of the position and of its neighbour three each.
    assert page.count(r"\u202egnp.exe") == 9
    assert page.count(r"\u001b[2J") == 9


def test_the_page_needs_no_other_file():
    page = Page(inspector.page([position()], title="t"))
    assert {"link", "img", "iframe"}.isdisjoint(page.tags)
    links = [value for name, value in page.attributes if name in ("href", "src")]
    assert links == ["#position-1"]


def test_a_neighbour_that_votes_for_the_target_is_marked():
    source = inspector.page([position()], title="t")
    body = source.split("<tbody>")[1]
    assert body.count("<b class=hit>·x</b>") == 1
    assert body.count("<b class=miss>↵</b>") == 1


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"p": 0.05}, "retrieval hurt −0.69 nats"),
        ({"p": 0.1}, "no change"),
        ({"p": 0.0}, "0.00%"),
        ({"neighbours": []}, "no neighbours"),
        ({"target": ""}, "∅"),
        ({"p_knn": 1e-6}, "1.0e-04%"),
    ],
)
def test_edges(changes, shown):
    page = Page(inspector.page([position(**changes)], title="t"))
    assert shown in "".join(page.words)


def test_bars_stay_inside_the_page():
    rows = [Neighbour("a", "b", 0.0, 1.7), Neighbour("a", "b", 0.0, -0.2)]
    page = Page(inspector.page([position(p=1.2, neighbours=rows)], title="t"))
    widths = [
        float(value[len("width:") : -1])
        for name, value in page.attributes
        if name == "style" and value
    ]
    assert len(widths) == 5 and all(0 <= width <= 100 for width in widths)


def test_a_narrow_screen_has_rules_of_its_own():
    source = inspector.page([position()], title="t")
    assert 'content="width=device-width, initial-scale=1"' in source
    narrow = source.partition("@media (max-width: 40rem) {")[2]
    for rule in ("flex-wrap: wrap", "table, tbody, tr, td { display: block"):
        assert rule in narrow


def test_write(tmp_path):
    path = tmp_path / "neighbours.html"
    inspector.write(path, [position()], title="t")
    assert path.read_text(encoding="utf-8") == inspector.page([position()], title="t")
    with pytest.raises(UserError, match="Cannot write"):
        inspector.write(tmp_path / "absent" / "page.html", [], title="t")
