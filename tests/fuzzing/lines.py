"""A launcher's command line, read in this process."""

import importlib
from collections.abc import Callable
from typing import Any

from absl import flags
from ml_collections import config_flags

from experiments import options


def presets(launcher: str) -> dict[str, Callable[[], Any]]:
    return importlib.import_module(f"experiments.{launcher}").PRESETS


def read_line(launcher: str, arguments: list[str]) -> Any:
    """What `launch.main` does with the arguments before it runs anything."""
    chosen = options.preset(arguments, presets(launcher))
    rest, default = options.with_file(arguments, presets(launcher)[chosen](), launcher)
    options.check_fields(rest, default)
    values = flags.FlagValues()
    flags.DEFINE_string("preset", "", "", flag_values=values)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    line = ["launcher", *rest]
    config = config_flags.DEFINE_config_dataclass(
        "config", default, flag_values=values, sys_argv=line
    )
    options.parse(line, default, values)
    return config.value
