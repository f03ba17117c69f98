import ast

from rlm_jax.data import docstrings

SOURCE = '''
"""A module is no passage."""
import abc

class Shelf(abc.ABC):
    """Holds books by title.

    A second paragraph.
    """

    size = 3  # comments stay

    @property
    def first(self):
        """The first book
        on the shelf."""
        return "é", """not a docstring"""

    @first.setter
    def first(self, book):
        "Puts a book first."

def short():
    """Two words."""

def inline(): "Says three words."; return 1

def outer():
    def inner():
        """Only inner is documented."""

async def later():
    """Waits for é ever."""; return 2
'''


def test_finds_what_is_documented():
    found = list(docstrings.of_module("pack.mod", SOURCE))
    assert [(d.id, d.question) for d in found] == [
        ("pack.mod.Shelf", "Holds books by title."),
        ("pack.mod.Shelf.first", "The first book on the shelf."),
        ("pack.mod.Shelf.first#2", "Puts a book first."),
        ("pack.mod.inline", "Says three words."),
        ("pack.mod.outer.inner", "Only inner is documented."),
        ("pack.mod.later", "Waits for é ever."),
    ]
    assert {d.module for d in found} == {"pack.mod"}


def test_passages_are_source_without_docstrings():
    source = {d.id: d.source for d in docstrings.of_module("m", SOURCE)}
    assert source["m.Shelf.first"] == (
        '@property\ndef first(self):\n    return "é", """not a docstring"""'
    )
    assert source["m.Shelf"].splitlines() == [
        "class Shelf(abc.ABC):",
        "",
        "    size = 3  # comments stay",
        "",
        *("    @property", "    def first(self):"),
        '        return "é", """not a docstring"""',
        "",
        *("    @first.setter", "    def first(self, book):"),
    ]
    assert source["m.inline"] == "def inline(): ; return 1"
    assert source["m.outer.inner"] == "def inner():"


def test_what_cannot_be_parsed_is_left_out():
    assert list(docstrings.of_module("m", "print 'python 2'")) == []


def test_no_question_is_in_a_passage():
    with open(ast.__file__, encoding="utf-8") as file:
        found = list(docstrings.of_module("ast", file.read()))
    assert len(found) > 20
    text = " ".join(" ".join(d.source.split()) for d in found)
    assert not [d.id for d in found if d.question in text]
