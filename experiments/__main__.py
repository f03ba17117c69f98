"""What can be run: ``rlm`` lists the launchers, and ``rlm NAME`` runs one.

    rlm trime --preset tiny --workdir runs/trime

is ``python -m experiments.trime --preset tiny --workdir runs/trime``.
"""

import ast
import pathlib
import runpy
import sys

from rlm_jax import terminal

_NOT_LAUNCHERS = {"__init__", "__main__", "launch", "options", "presets", "field_help"}


def launchers() -> dict[str, str]:
    """Name -> the first line of what it says of itself."""
    found = {}
    for path in sorted(pathlib.Path(__file__).parent.glob("*.py")):
        if path.stem not in _NOT_LAUNCHERS:
            told = ast.get_docstring(ast.parse(path.read_bytes())) or ""
            found[path.stem] = told.partition("\n")[0]
    return found


def listing() -> str:
    """The launchers, a line each."""
    named = launchers()
    width = max(map(len, named))
    lines = ["rlm NAME --workdir FOLDER  (or python -m experiments.NAME)", ""]
    lines += [f"  {name:<{width}}  {told}" for name, told in named.items()]
    return "\n".join(lines) + "\n"


def main() -> int:
    """The program ``rlm``; its exit status."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h", "help"):
        terminal.write(listing())
        return 0
    if name not in launchers():
        terminal.say(f"error: There is no launcher {name!r}; rlm alone lists them.")
        return 1
    sys.argv = [f"rlm {name}", *arguments]
    runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
