"""The command line of a launcher: what is wrong with it, in words, and its help."""

import dataclasses
import os
import pathlib
import re
import sys
import textwrap
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags

from experiments import field_help
from rlm_jax import configuration
from rlm_jax.errors import UserError, told
from rlm_jax.storage import sealed

# A field of a few words is parsed as any word; `configuration` knows those that fit.
config_flags.register_flag_parser_for_type(typing.Literal, flags.ArgumentParser())

_REMEDY = "give a run's config.json, without its line 'checksum' if you edited it"
PLURAL = {"int": "a whole number", "float": "a number", "bool": "true or false"}


def preset(arguments: Sequence[str], presets: Mapping[str, Any]) -> str:
    """The value of --preset, which must be known before the other flags are.

    Raises:
      UserError: there is no such preset, or no value.
    """
    name = next(iter(presets))
    for at, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag in ("--preset", "-preset"):
            name = value if equals else "".join(arguments[at + 1 : at + 2])
    if name not in presets:
        raise UserError(f"Unknown preset {name!r}; choose one of {', '.join(presets)}.")
    return name


def check_fields(arguments: Sequence[str], config: Any) -> None:
    """Every ``--config.x.y`` names a field, and absl reads no files of flags.

    Raises:
      UserError: with the fields that there are.
    """
    for argument in arguments:
        flag = argument.lstrip("-").partition("=")[0]
        if argument.startswith("-") and flag == "flagfile":
            raise UserError("There is no --flagfile; give --config=FILE, a run's own.")
        path = flag.removeprefix("no").split(".")
        if not argument.startswith("-") or path[0] != "config" or len(path) < 2:
            continue
        holder = config
        for depth, name in enumerate(path[1:], 1):
            if not dataclasses.is_dataclass(holder):
                raise UserError(f"{'.'.join(path[:depth])} has no fields of its own.")
            known = [field.name for field in dataclasses.fields(holder)]
            if name not in known:
                raise UserError(
                    f"There is no {flag}; {'.'.join(path[:depth])} has the fields "
                    f"{', '.join(known)}."
                )
            holder = getattr(holder, name)
        if dataclasses.is_dataclass(holder):
            known = [field.name for field in dataclasses.fields(holder)]
            raise UserError(f"{flag} is a group; set one of {', '.join(known)} in it.")


def parse(
    arguments: list[str], config: Any, values: flags.FlagValues = flags.FLAGS
) -> list[str]:
    """absl's parser, whose complaints become `UserError`, and the fields' own checks.

    ``config`` is the preset, before the flags change it in ``values``.
    """
    try:
        rest = values(arguments)
    except flags.IllegalFlagValueError as error:
        found = re.match(r"flag --(config\.[.\w]+)=(.*?): ", str(error), re.DOTALL)
        if found is None:
            raise UserError(f"{' '.join(str(error).split())}.") from error
        name, value = found.groups()
        kind = _type(config, name.split(".")[1:])
        raise UserError(
            f"--{name}={value[:100]} does not fit; give "
            f"{PLURAL.get(kind, f'a {kind}')}."
        ) from error
    except flags.Error as error:
        raise UserError(
            f"{' '.join(str(error).split()).rstrip('.')}; --help lists the options."
        ) from error
    except (
        *(AttributeError, LookupError, MemoryError, OSError, RecursionError),
        *(SyntaxError, TypeError, ValueError),
    ) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"A --config flag does not fit: {reason}.") from error
    configuration.check(values["config"].value, "--config")
    return rest


def _type(config: Any, path: Sequence[str]) -> str:
    for name in path[:-1]:
        config = getattr(config, name)
    hint = typing.get_type_hints(type(config))[path[-1]]
    return getattr(hint, "__name__", str(hint)) if isinstance(hint, type) else str(hint)


def help_text(presets: Mapping[str, Callable[[], Any]]) -> str:
    """The launcher's own words, its presets and every field with its default."""
    default = next(iter(presets))
    lines = [
        (sys.modules["__main__"].__doc__ or "").strip(),
        "",
        "  --workdir=FOLDER   where everything of the run goes (required)",
        f"  --preset=NAME      the configuration; {default} if not given",
        "  --dry_run          build everything and show its size; train nothing",
        "  --config=FILE      the fields of another run's config.json",
        "  --config.x.y=VALUE change a field of them",
        "",
        "Presets:",
    ]
    width = max(map(len, presets))
    for name, make in presets.items():
        summary = (make.__doc__ or "").strip().split("\n")
        lines.append(f"  {name:<{width}}  {summary[0]}")
    lines += ["", f"Fields, with their values in {default}:"]
    for field in field_help.fields(presets[default]()):
        lines.append(f"  --config.{field.path}={field.value}")
        if field.told:
            lines += textwrap.wrap(
                field.told, 76, initial_indent=" " * 8, subsequent_indent=" " * 8
            )
    return "\n".join(lines) + "\n"


def with_file(
    arguments: Sequence[str], config: Any, system: str
) -> tuple[list[str], Any]:
    """The arguments without ``--config=FILE``, and the configuration of that file.

    Args:
      config: the preset, whose fields the file's go before.
      system: that of the launcher.

    Raises:
      UserError: no such file, it is no run's config.json, it is of another system, or
        it has a field that this launcher does not know.
    """
    rest: list[str] = []
    named: list[str] = []
    waits = False
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if waits or (equals and flag in ("--config", "-config")):
            named.append(argument if waits else value)
            waits = False
        elif argument in ("--config", "-config"):
            waits = True
        else:
            rest.append(argument)
    for name in named:
        path = pathlib.Path(name)
        path = path / "config.json" if os.path.isdir(path) else path
        try:
            fields = sealed.read(path, {}, remedy=_REMEDY, older=True)
        except OSError as error:
            raise UserError(
                f"--config={name} cannot be read ({error}); give a run's config.json."
            ) from error
        theirs = fields.get("system", system)
        if theirs != system:
            raise UserError(
                f"--config={name} is of a run of {theirs}, and this is {system}; give "
                f"one of {system}."
            )
        about = ("system", "fingerprint", "identity")
        fields = {key: x for key, x in fields.items() if key not in about}
        config = _filled(config, fields, name, "")
    return rest, config


def _filled(config: Any, fields: Mapping[str, Any], file: str, path: str) -> Any:
    known = {field.name: field for field in dataclasses.fields(config)}
    changes = {}
    for key, value in fields.items():
        if key not in known:
            raise UserError(
                f"--config={file} has the field {path}{key}, which this launcher does "
                "not know; correct or remove it."
            )
        own = getattr(config, key)
        if dataclasses.is_dataclass(own):
            if not isinstance(value, dict):
                raise UserError(
                    f"--config={file} has {path}{key}={told(value)}, which is a group "
                    "of fields; correct it."
                )
            value = _filled(own, value, file, f"{path}{key}.")
        elif isinstance(own, tuple) and isinstance(value, list):
            value = tuple(value)
        elif isinstance(own, float) and type(value) is int and abs(value) < 1 << 63:
            value = float(value)
        elif type(value) is not type(own):
            raise UserError(
                f"--config={file} has {path}{key}={told(value)}, which does not fit; "
                f"give {PLURAL.get(type(own).__name__, f'a {type(own).__name__}')}."
            )
        changes[key] = value
    return dataclasses.replace(config, **changes)
