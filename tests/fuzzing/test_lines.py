"""Whatever a flag says, a launcher's command line is read or refused by `UserError`.

Dozens of lines in `make test`, thousands, marked slow, in `make test-all`; they are the
same every time.
"""

import contextlib
import functools
import json

import hypothesis
import pytest
from hypothesis import strategies as st

from experiments import __main__ as program
from experiments import field_help
from rlm_jax import failures
from rlm_jax.errors import UserError
from tests.fuzzing.lines import presets, read_line
from tests.fuzzing.mutations import STRANGE, examples

LAUNCHERS = sorted(set(program.launchers()) - {"compare"})
VALUES = st.sampled_from(
    [
        *(json.dumps(x) for x in STRANGE if not isinstance(x, str)),
        *(x for x in STRANGE if isinstance(x, str) and "\0" not in x),
        *("1e400", "-0", "1_0", "0x10", "1.5", "0.5", "3", "100000000000", "None"),
        *("true", "false", "(1,2)", "(1,'a')", "(,)", "()", "((1,2),3)", "(" * 300),
        *("[1,2]", "{'a':1}", "'x", "\\", "$(x)", "9" * 5000, "0x" + "f" * 5000),
    ]
) | st.text(st.characters(exclude_characters="\0"), max_size=8)


@pytest.fixture(autouse=True, scope="module")
def launchers_are_imported() -> None:
    """Not while hypothesis draws: some libraries draw random numbers then."""
    for launcher in LAUNCHERS:
        fields(launcher)


@functools.cache
def fields(launcher: str) -> list[str]:
    default = next(iter(presets(launcher).values()))()
    return [field.path for field in field_help.fields(default)]


@st.composite
def lines(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A launcher and one to three of its flags, most of them bad."""
    launcher = draw(st.sampled_from(LAUNCHERS))
    known = [f"config.{path}" for path in fields(launcher)]
    others = st.sampled_from(["config", "preset", "config.no.such", "flagfile", "x"])
    arguments = []
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(known) | st.sampled_from(known) | others)
        arguments.append(f"--{name}={draw(VALUES)}")
    return launcher, arguments


def read(line: tuple[str, list[str]]) -> None:
    with contextlib.suppress(UserError):
        read_line(*line)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_plain_line_is_read(launcher):
    read_line(launcher, ["--workdir=x"])


@examples(60)
@hypothesis.given(line=lines())
def test_bad_lines(line):
    read(line)


@pytest.mark.slow
@examples(3000)
@hypothesis.given(line=lines())
def test_many_bad_lines(line):
    read(line)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--flagfile=/dev/zero", "There is no --flagfile"),
        ("--config=/dev/zero", "/dev/zero is a device or a pipe"),
        (f"--config={'x' * 5000}", "cannot be read"),
        ("--config.evaluate.window=1000000000", "--config.evaluate.window is"),
        ("--config.train.seed=9223372036854775808", "--config.train.seed is"),
        ("--config.optim.learning_rate=nan", "--config.optim.learning_rate is nan"),
        (f"--config.train.steps={'9' * 5000}", "train.steps=9999"),
        (f"--config.method.decoder.cutoffs={'(' * 300}", "cutoffs"),
    ],
)
def test_what_does_not_fit_is_named(flag, message):
    with pytest.raises(UserError, match=message):
        read_line("lm", [flag])


def test_a_path_that_no_file_system_has_is_told(tmp_path, capsys):
    (tmp_path / "round").symlink_to(tmp_path / "round")
    for path, why in (
        ("x" * 5000, "is too long"),
        (tmp_path / "round", "is a link that leads to itself"),
    ):
        with pytest.raises(SystemExit) as ended, failures.one_line():
            open(path)
        assert ended.value.code == 1 and why in capsys.readouterr().err
