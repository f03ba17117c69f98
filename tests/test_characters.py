import io
import json
import os
import pathlib
import subprocess
import sys
import unicodedata

import pytest

from rlm_jax import characters, terminal
from rlm_jax.data import files
from rlm_jax.errors import UserError

NFD = "résumé"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The Red fox_1!", ["the", "red", "fox", "1"]),
        ("काल कुल किला", ["काल", "कुल", "किला"]),  # vowels are marks
        ("தமிழ் மொழி", ["தமிழ்", "மொழி"]),
        ("বাংলা ভাষা", ["বাংলা", "ভাষা"]),
        (unicodedata.normalize("NFD", NFD), [NFD]),
        (unicodedata.normalize("NFD", "한국어"), ["한국어"]),
        ("İstanbul I\u0307zmir", ["istanbul", "izmir"]),
        ("می\u200cخواهم", ["می\u200cخواهم"]),  # a joiner stands inside a word
        ("co\u00adoperate", ["cooperate"]),
        ("蓝鲸是哺乳动物", list("蓝鲸是哺乳动物")),  # no blanks between words
        ("ทะเลไทย", ["ท", "ะ", "เ", "ล", "ไ", "ท", "ย"]),
        ("abc蓝鲸12", ["abc", "蓝", "鲸", "12"]),
        ("ページのテスト", list("ページのテスト")),
        ("\u0301 \u200d", []),  # marks and joiners alone are no word
    ],
)
def test_words_of_every_script(text, words):
    assert characters.words(text) == words
    composed = unicodedata.normalize("NFC", text)
    assert characters.words(composed) == words


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("_read_file(x)", "_read_file read file(x)"),
        ("HTTPError getFileSize", "HTTPError HTTP Error getFileSize get File Size"),
        ("__init__ utf8 _ plain", "__init__ init utf8 _ plain"),
        ("naïve_Été étéNow", "naïve_Été naïve Été étéNow été Now"),
        (unicodedata.normalize("NFD", "caféÉté_b"), "caféÉté_b café Été b"),
        ("नमस्ते_दुनिया", "नमस्ते_दुनिया नमस्ते दुनिया"),
    ],
)
def test_names_are_followed_by_their_parts(text, told):
    assert characters.with_parts(text) == told


def test_what_may_stand_inside_a_word():
    assert characters.words("Don't a_b", inside="'") == ["don't", "a", "b"]
    assert characters.words("Don’t a_bé", inside="'’", underscore=True) == (
        ["don’t", "a_bé"]
    )


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a\nb\n", ["a", "b"]),
        ("a\r\nb", ["a", "b"]),
        ("a\u2028b\n\u2029c", ["a\u2028b", "\u2029c"]),
        ("a\x85b\x0cc\x0bd\x1ce", ["a\x85b\x0cc\x0bd\x1ce"]),
        ("a\rb\n", ["a\rb"]),
        ("\n\n", ["", ""]),
        ("", []),
    ],
)
def test_lines_end_at_line_feeds_alone(text, lines):
    assert characters.lines(text) == lines


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"caf\xc3\xa9", "café"),
        (b"\xef\xbb\xbfa", "a"),
        (b"a\xef\xbb\xbf", "a\ufeff"),  # a mark is one at the start alone
        (b"", ""),
    ],
)
def test_decode(data, text):
    assert characters.decode(data, "it") == text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"caf\xe9", r"it is not UTF-8 text \(see byte 3\)"),
        ("a".encode("utf-16"), "it is UTF-16"),
        (b"\xed\xa0\xbd", "see byte 0"),
    ],
)
def test_decode_refuses(data, message):
    with pytest.raises(UserError, match=message):
        characters.decode(data, "it")


@pytest.mark.parametrize("path", ["caf\udce9", "a\udcff\udcfe", "é", "\ud83d", "plain"])
def test_paths_survive_json_and_can_be_shown(tmp_path, path):
    """Bytes of a path that are no text: JSON has them back as they were."""
    characters.write_json(tmp_path / "x.json", {"path": path})
    assert characters.read_json(tmp_path / "x.json") == {"path": path}
    characters.shown(path).encode()


@pytest.mark.parametrize(
    ("text", "repaired"),
    [
        ("caf\udce9", ("caf\ufffd", True)),
        ("a\ud83d", ("a\ufffd", True)),
        ("caf\udcc3\udca9", ("café", False)),  # UTF-8 in a terminal of ASCII
        (" blanks stay \t", (" blanks stay \t", False)),
    ],
)
def test_repaired(text, repaired):
    assert characters.repaired(text) == repaired


@pytest.mark.parametrize(
    ("value", "half"),
    [
        ({"a": ["\ud83d"]}, "\\ud83d"),
        ({"\udc00": 1}, "\\udc00"),
        (["x", {"b": {"c": "y\udfff"}}], "\\udfff"),
        ({"a": "😀"}, None),
        ([1, None, "é"], None),
    ],
)
def test_half_characters_are_found_anywhere(value, half):
    assert characters.half_character(value) == half


class Pipe(io.TextIOWrapper):
    def __init__(self, data: bytes, encoding: str = "utf-8"):
        super().__init__(io.BytesIO(data), encoding=encoding)


@pytest.mark.parametrize(
    ("data", "encoding", "lines"),
    [
        (b"one\n  \ntwo", "utf-8", ["one"]),  # an empty line ends
        (b"\xef\xbb\xbfone\n", "utf-8", ["one"]),
        (b" a prompt \r\n", "utf-8", [" a prompt "]),
        (b"caf\xe9\nnext\n", "utf-8", ["caf\ufffd", "next"]),
        (b"caf\xe9\n", "latin-1", ["café"]),
        (b"caf\xc3\xa9\n", "ascii", ["café"]),
        (b"a\xe2\x80\xa8b\n", "utf-8", ["a\u2028b"]),
        (b"", "utf-8", []),
    ],
)
def test_lines_of_a_pipe(monkeypatch, data, encoding, lines):
    monkeypatch.setattr(sys, "stdin", Pipe(data, encoding))
    assert list(terminal.asked()) == lines


def test_stdin_may_be_closed(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert not terminal.asks()
    assert list(terminal.asked()) == []


def test_who_reads_may_have_enough():
    """As with `| head -1`: no traceback, and the status of a broken pipe."""
    code = "from rlm_jax import terminal\nwhile True: terminal.write('line\\n' * 9999)"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline() == b"line\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


def test_what_stands_after_an_empty_line_is_told(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", Pipe(b"one\n\ntwo\n \nthree\n"))
    assert list(terminal.asked()) == ["one"]
    assert "2 lines after it are not read" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_every_terminal_can_be_written_to(monkeypatch, encoding):
    out = io.BytesIO()
    stream = io.TextIOWrapper(out, encoding=encoding, write_through=True)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    terminal.write("… 1 ×2 · 蓝 caf\udce9\n")
    terminal.say("→ 蓝\udce9")
    terminal.write_json({"text": "蓝é\udce9"})
    line = out.getvalue().decode(encoding).splitlines()[-1]
    assert json.loads(line)["text"][:2] == "蓝é"


COMMANDS = "\x1b[31m \x9b2J \x7f \r \x08 \u202e \u2066 \u200f \u061c"
SPELLED = r"\u001b[31m \u009b2J \u007f \u000d \u0008 \u202e \u2066 \u200f \u061c"


def test_what_commands_a_terminal_is_shown(monkeypatch, capsys):
    """Escape sequences and marks of direction of a text that was found, or a path."""
    assert characters.visible(COMMANDS) == SPELLED
    plain = "tabs\tand lines\n stay, and 蓝 עברית می\u200cخواهم"
    assert characters.visible(plain) == plain
    assert characters.visible("a\r\nb") == "a\nb"
    terminal.write(f"{COMMANDS}\n")
    terminal.say(COMMANDS)
    terminal.write_json({"text": COMMANDS})
    list(terminal.bar(COMMANDS, "it")([1]))
    with terminal.counter(COMMANDS, 1) as count:
        count(1)
    shown = capsys.readouterr()
    first, line = shown.out.splitlines()
    assert first == SPELLED and json.loads(line) == {"text": COMMANDS}
    assert shown.err.count(SPELLED) >= 3
    obeyed = {c for c in COMMANDS if not c.isprintable()} - {"\r"}  # a bar's own
    assert not obeyed & set(shown.out + shown.err.replace("\x1b[A", ""))


def test_json_that_is_nested_too_deeply(tmp_path):
    path = tmp_path / "deep.json"
    path.write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        characters.read_json(path)


def test_devices_and_pipes_are_no_files(tmp_path):
    """They may never end: neither is waited for."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in ("/dev/zero", pipe):
        with pytest.raises(UserError, match="is a device or a pipe and may never end"):
            characters.read(path)
        with pytest.raises(UserError, match="is a device or a pipe"):
            list(files.lines(pathlib.Path(path)))
    characters.check_file(tmp_path)
    characters.check_file(tmp_path / "nowhere")
