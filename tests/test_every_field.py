"""Every field of every launcher: told in --help, and refused where it has a bad value.

Refused by `configuration.check`, which every recipe calls before anything else, in a
dry run too.
"""

import ast
import copy
import dataclasses
import importlib
import json
import pathlib
import sys
import typing
from collections.abc import Iterator
from typing import Any

import pytest

from experiments import __main__ as program
from experiments import field_help, options
from rlm_jax import configuration
from rlm_jax.errors import UserError

LAUNCHERS = sorted(program.launchers())
WITH_PRESETS = [name for name in LAUNCHERS if name != "compare"]


def presets(name: str) -> dict[str, Any]:
    return importlib.import_module(f"experiments.{name}").PRESETS


def places(config: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from places(value, (*path, field.name))
        else:
            yield (*path, field.name)


def at(config: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        config = getattr(config, name)
    return config


def changed(config: Any, path: tuple[str, ...], value: Any) -> Any:
    config = copy.deepcopy(config)
    setattr(at(config, path[:-1]), path[-1], value)
    return config


def bad_values(holder: Any, name: str) -> list[Any]:
    """Values of the field's type that it cannot have."""
    hint = typing.get_type_hints(type(holder))[name]
    if typing.get_origin(hint) is typing.Literal:
        return ["no such word", None, []]
    if typing.get_origin(hint) is tuple:
        (kind, _) = typing.get_args(hint)
        return [None, 1, "1", *((x,) for x in bad_elements(holder, name, kind))]
    return [None, (), *bad_elements(holder, name, hint)]


def bad_elements(holder: Any, name: str, kind: type) -> list[Any]:
    """Of a field that has one value, or several of them."""
    if kind is bool:
        return [1, "true"]
    if kind is str:
        return [3, "a\0b", *([] if name in configuration.TEXTS else ["x" * 300])]
    most = configuration.LIMITS.get(name, configuration.MOST)
    other: list[Any] = ["1", True, *([0.5, 2**63, most + 1] if kind is int else [])]
    other += [] if kind is int else [float("nan"), float("inf"), 1e39, 10**400]
    if name in own(holder, "ANY_NUMBER"):
        return other
    least = [-1] if kind is int else [-0.5]
    least += [kind(0)] if needs_more(holder, name) else []
    least += [1e-320] if needs_more(holder, name) and kind is float else []
    shares = name in configuration.SHARES or name in own(holder, "SHARES")
    shares = shares or name in configuration.BELOW_ONE
    other += [1.5] if kind is float and shares else []
    other += [1.0] if name in configuration.BELOW_ONE else []
    return [*other, *least]


def own(holder: Any, which: str) -> tuple[str, ...]:
    return getattr(type(holder), which, ())


def needs_more(holder: Any, name: str) -> bool:
    positive = name in configuration.POSITIVE or name in own(holder, "POSITIVE")
    return positive and name not in own(holder, "MAY_BE_ZERO")


def test_every_field_has_a_kind_that_is_checked():
    """A type that `configuration` does not know would be checked for nothing."""
    kinds = (int, float, bool, str)
    for launcher in WITH_PRESETS:
        config = next(iter(presets(launcher).values()))()
        for path in places(config):
            hint = typing.get_type_hints(type(at(config, path[:-1])))[path[-1]]
            arguments = typing.get_args(hint)
            several = typing.get_origin(hint) is tuple and arguments[1:] == (...,)
            literal = typing.get_origin(hint) is typing.Literal
            assert literal or (arguments[0] if several else hint) in kinds, path


@pytest.mark.parametrize("launcher", WITH_PRESETS)
def test_a_flag_can_set_every_field(launcher):
    config = next(iter(presets(launcher).values()))()
    for path in places(config):
        holder = at(config, path[:-1])
        setattr(holder, path[-1], getattr(holder, path[-1]))  # none is frozen


def test_what_a_class_says_of_its_fields_is_of_fields_it_has():
    for launcher in WITH_PRESETS:
        config = next(iter(presets(launcher).values()))()
        for holder in holders(config):
            known = {field.name for field in dataclasses.fields(holder)}
            for which in ("ANY_NUMBER", "MAY_BE_ZERO", "POSITIVE", "SHARES"):
                assert set(own(holder, which)) <= known, (type(holder), which)


def holders(config: Any) -> Iterator[Any]:
    yield config
    for field in dataclasses.fields(config):
        if dataclasses.is_dataclass(getattr(config, field.name)):
            yield from holders(getattr(config, field.name))


@pytest.mark.parametrize("launcher", WITH_PRESETS)
def test_presets_pass(launcher):
    for make in presets(launcher).values():
        configuration.check(make())


@pytest.mark.parametrize("launcher", WITH_PRESETS)
def test_bad_values_of_every_field_are_refused_first(launcher):
    config = next(iter(presets(launcher).values()))()
    missed, tried = [], 0
    for path in places(config):
        for value in bad_values(at(config, path[:-1]), path[-1]):
            tried += 1
            try:
                configuration.check(changed(config, path, value))
            except UserError as error:
                if path[-1] in str(error):
                    continue
            missed.append((".".join(path), value))
    assert missed == []
    assert tried or launcher in ("memory",)


@pytest.mark.parametrize(
    ("launcher", "path", "value", "message"),
    [
        ("lm", "evaluate.stride", 500, "evaluate.stride=500 is beyond evaluate.window"),
        ("trime", "evaluate.window", 32, "is beyond evaluate.window=32"),
        ("knn_lm", "tune.ks", (), "A grid to tune on is empty"),
        ("trime", "memory.temperatures", (), "memory.temperatures is empty"),
        ("bm25", "judge.measures", ("recall",), "needs a cutoff"),
        ("dpr", "judge.measures", ("mrr@0",), "no measure 'mrr@0'"),
        ("replug", "ensemble.temperatures", (), "ensemble.temperatures is empty"),
        ("contriever", "crops.smallest", 0.9, "crops.smallest"),
        ("generate", "top_p", 1.5, "top_p is 1.5"),
        # Found by trial.
        ("lm", "evaluate.max_tokens", -1, "max_tokens is -1; choose 0 or more"),
        ("knn_lm", "method.temperature", 0.0, "temperature is 0.0; choose a number ab"),
        ("lm", "method.decoder.dropout", 1.5, "dropout is 1.5; choose a number from 0"),
        ("lm", "method.decoder.dropout", 1.0, "dropout is 1.0; .* from 0 to below 1"),
        ("lm", "optim.b1", 2.0, "b1 is 2.0; choose a number from 0 to below 1"),
        ("lm", "optim.learning_rate", float("nan"), "learning_rate is nan; give a fin"),
        ("lm", "optim.learning_rate", 1e-320, "for in float32 it is 0"),
        ("lm", "train.seed", -1, "train.seed is -1; choose 0 or more"),
        ("lm", "train.seed", 2**63, "train.seed is .*; choose at most 2,147,483,647"),
        ("lm", "evaluate.window", 10**9, "window is 1000000000; choose at most 1,048,"),
        ("lm", "data.length", 10**9, "data.length is 1000000000; choose at most"),
        ("lm", "method.decoder.num_layers", 10**9, "num_layers is .*; choose at most"),
        ("trime", "memory.size", 10**9, "memory.size is 1000000000; choose at most"),
        ("knn_lm", "method.weight", 1.5, "weight is 1.5; choose a number from 0 to 1"),
        ("lm", "init_from", "x" * 5000, "init_from is .*; no file has a name of more"),
        ("lm", "data.corpus", "text:a\0b", "corpus is .*; remove the character NUL"),
        ("lm", "train.steps", "3", "train.steps is '3', which does not fit; give a wh"),
        ("lm", "train.tensorboard", 1, "tensorboard is 1, which does not fit; give tr"),
    ],
)
def test_what_holds_of_fields_together(launcher, path, value, message):
    config = next(iter(presets(launcher).values()))()
    with pytest.raises(UserError, match=message):
        configuration.check(changed(config, tuple(path.split(".")), value))


@pytest.mark.parametrize("launcher", WITH_PRESETS)
def test_help_tells_what_each_field_is_for(launcher):
    config = next(iter(presets(launcher).values()))()
    untold = [field.path for field in field_help.fields(config) if not field.told]
    assert untold == []
    shown = options.help_text(presets(launcher))
    for path in places(config):
        assert f"--config.{'.'.join(path)}=" in shown


def test_help_names_choices():
    told = {x.path: x.told for x in field_help.fields(presets("lm")["tiny"]())}
    assert "frequent_repeats" in told["data.order"]
    assert "disallow" in told["train.transfer_guard"]
    assert "a window holds" in told["evaluate.window"]


# --- rlm -----------------------------------------------------------------------------


def test_every_launcher_is_listed(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["rlm"])
    assert program.main() == 0
    shown = capsys.readouterr().out
    for name in LAUNCHERS:
        assert f"\n  {name} " in shown
    folder = pathlib.Path(program.__file__).parent
    runnable = {
        path.stem
        for path in folder.glob("*.py")
        if "\nif __name__ ==" in path.read_text(encoding="utf-8")
        and path.stem != "__main__"
    }
    assert set(LAUNCHERS) == runnable


def test_rlm_runs_a_launcher(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["rlm", "search", "--help"])
    monkeypatch.delitem(sys.modules, "experiments.search", raising=False)
    main = sys.modules["__main__"]
    assert program.main() == 0
    assert sys.modules["__main__"] is main
    assert "--config.run_file=" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["rlm", "nothing"])
    assert program.main() == 1
    assert "no launcher 'nothing'" in capsys.readouterr().err


def test_the_console_script_is_there():
    tree = ast.parse(
        (pathlib.Path(program.__file__).parents[1] / "setup.py").read_bytes()
    )
    words = [x.value for x in ast.walk(tree) if isinstance(x, ast.Constant)]
    assert "rlm = experiments.__main__:main" in words and "experiments" in words


# --- --config=FILE -------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path):
    config = presets("lm")["tiny"]()
    config.train.steps, config.optim.learning_rate = 7, 0.5
    fields = dataclasses.asdict(config)
    about = {"system": "lm", "fingerprint": "x", "identity": {"tokenizer": "y"}}
    path = tmp_path / "config.json"
    path.write_text("\ufeff" + json.dumps({**about, **fields}), encoding="utf-8")
    return path


@pytest.mark.parametrize("form", ["--config={}", "--config {}", "--config={folder}"])
def test_a_runs_configuration_is_taken(stored, form):
    words = form.format(stored, folder=stored.parent).split(" ")
    default = presets("lm")["tiny"]()
    rest, config = options.with_file([*words, "--workdir=x"], default, "lm")
    assert rest == ["--workdir=x"]
    assert config.train.steps == 7 and config.optim.learning_rate == 0.5
    assert dataclasses.replace(
        config, train=default.train, optim=default.optim
    ) == default  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"system": "trime"}, "is of a run of trime, and this is lm"),
        ({"trian": 1}, "has the field trian"),
        ({"train": {"stepz": 1}}, "has the field train.stepz"),
        ({"train": 3}, "train=3, which is a group"),
        (
            {"train": {"steps": "3"}},
            "train.steps='3', which does not fit; give a whole",
        ),
        ({"init_from": 3}, "init_from=3, which does not fit"),
    ],
)
def test_a_file_that_does_not_fit(tmp_path, change, message):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(change))
    with pytest.raises(UserError, match=message):
        options.with_file([f"--config={path}"], presets("lm")["tiny"](), "lm")
    with pytest.raises(UserError, match="cannot be read"):
        options.with_file(["--config=/none.json"], presets("lm")["tiny"](), "lm")
