"""The rules of the house: who imports whom, and what no file may hold."""

import ast
import pathlib
from collections.abc import Iterable, Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "rlm_jax"
MAX_LINES = 400

# Part of the package -> the parts it may import, besides itself.
MAY_IMPORT: dict[str, set[str]] = {
    "": {"recipes", "version"},
    "characters": {"errors"},
    "version": set(),
    "allocator": set(),
    "errors": set(),
    "configuration": {"errors"},
    "method": set(),
    "terminal": {"characters"},
    "side_files": {"characters", "terminal", "errors"},
    "peers": {"terminal", "errors"},
    "failures": {"peers", "terminal", "errors"},
    "processes": {"peers", "errors"},
    "storage": {"characters", "errors"},
    "ops": set(),
    "models": {"ops", "configuration", "errors"},
    "pretrained": {"characters", "models", "side_files", "storage", "errors"},
    "methods": {"models", "ops", "method", "configuration", "errors"},
    "data": {
        *("characters", "configuration", "method", "side_files", "storage"),
        *("terminal", "errors"),
    },
    "retrieval": {
        *("characters", "configuration", "method", "processes", "storage", "errors"),
    },
    "retrievers": {
        *("data", "retrieval", "pretrained", "models", "side_files", "characters"),
        *("configuration", "method", "processes", "storage", "terminal", "errors"),
    },
    "readers": {
        *("data", "methods", "models", "pretrained", "retrieval", "retrievers"),
        *("side_files", "method", "processes", "storage", "evaluate", "terminal"),
        *("characters", "errors"),
    },
    "train": {
        *("characters", "configuration", "method", "ops.collectives", "processes"),
        "storage",
        *("terminal", "errors"),
    },
    "evaluate": {
        *("methods", "method", "ops", "processes", "retrieval", "storage"),
        *("characters", "configuration", "errors"),
    },
    "report": {"characters", "storage", "version", "errors"},
    "recipes": {
        *("data", "evaluate", "methods", "models", "ops", "pretrained", "report"),
        *("readers", "retrieval", "retrievers", "side_files", "storage", "train"),
        *("characters", "configuration", "errors", "method", "processes"),
        "terminal",
    },
}

# Library -> the only places that may import it; an empty set bans it.
CONFINED: dict[str, set[str]] = {
    "flax": {"models"},
    "orbax": {"train.checkpoint"},
    "optax": {"train"},
    "scann": {"retrieval"},
    "bm25s": {"retrieval", "data"},
    "tensorflow_datasets": {"data"},
    "matplotlib": {"report"},
    "gguf": {"storage.gguf_files"},
    "pickle": set(),
    "cloudpickle": set(),
    "dill": set(),
    "tensorflow": set(),
    "torch": set(),
    "transformers": set(),
}

# Slow to import or not built everywhere: imported inside the function that uses them.
LAZY = {"scann", "tensorflow_datasets", "matplotlib", "gguf"}

# What a system computes does not depend on which process its devices belong to: it
# knows the mapped axis alone, and so is tried on the devices of one process.
DEVICELESS = {"ops", "models", "methods"}
OF_DEVICES = {
    *("devices", "local_devices", "device_count", "local_device_count"),
    *("process_index", "process_count"),
}

OF_CHARACTERS = {"read_text", "write_text", "splitlines"}

OPS_LIBRARIES = {"jax", "jaxtyping", "numpy"}
STANDARD_FOR_OPS = {"collections", "functools", "typing", "math", "dataclasses"}


def module_name(path: pathlib.Path) -> str:
    """``rlm_jax/ops/memory.py`` -> ``ops.memory``; the package itself is ``""``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(tree: ast.AST) -> Iterator[str]:
    """Every absolute name that a module imports, wherever the statement stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise AssertionError(f"line {node.lineno}: import by absolute names")
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports_at_import_time(tree: ast.Module) -> Iterator[str]:
    """The same, without those inside functions and under ``if TYPE_CHECKING``."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield from imports(node)


def is_within(name: str, places: set[str]) -> bool:
    return any(name == place or name.startswith(place + ".") for place in places)


def violations(module: str, source: str) -> list[str]:
    """What is wrong with one module of the package, a line each."""
    tree = ast.parse(source)
    part = module.split(".")[0]
    found = []
    for name in imports(tree):
        library, _, inner = name.partition(".")
        if library == "rlm_jax":
            # `from rlm_jax import x` of the version alone names no part.
            allowed = MAY_IMPORT.get(part, set()) | {part, "__version__"}
            if not is_within(inner, allowed):
                found.append(f"{module} imports {name}")
        elif not is_within(module, CONFINED.get(library, {module})):
            found.append(f"{module} imports {library}")
        elif part == "ops" and library not in OPS_LIBRARIES | STANDARD_FOR_OPS:
            found.append(f"{module} imports {library}")
    for name in imports_at_import_time(tree):
        if name.split(".")[0] in LAZY:
            found.append(f"{module} imports {name} at import time")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called == "print":
                found.append(f"{module} prints, line {node.lineno}")
            # How bytes become text and lines is decided in one place.
            if called.rpartition(".")[2] in OF_CHARACTERS and module not in (
                "characters",
                "data.docstrings",  # bytes of program text, whose lines Python counts
            ):
                found.append(f"{module} calls {called}, line {node.lineno}")
            for keyword in node.keywords:
                if keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != (
                    "False"
                ):
                    found.append(f"{module} allows pickle, line {node.lineno}")
        elif part in DEVICELESS and isinstance(node, ast.Attribute):
            if node.attr in OF_DEVICES:
                found.append(f"{module} asks for {node.attr}, line {node.lineno}")
        elif isinstance(node, ast.Global):
            found.append(f"{module} has a mutable global, line {node.lineno}")
    return found


MODULES = sorted(PACKAGE.rglob("*.py"))
SOURCES = [
    path
    for folder in ("rlm_jax", "experiments", "tests", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_module_keeps_the_rules(path):
    assert violations(module_name(path), path.read_text(encoding="utf-8")) == []


def test_every_part_is_in_the_matrix():
    parts = {module_name(path).split(".")[0] for path in MODULES} - {""}
    assert parts <= set(MAY_IMPORT)


def graph() -> dict[str, set[str]]:
    """Module -> the modules of the package that it imports, wherever it does."""
    names = {module_name(path) for path in MODULES}

    def module_of(imported: str) -> str:
        inner = imported.removeprefix("rlm_jax").removeprefix(".")
        return inner if inner in names else inner.rpartition(".")[0]

    return {
        module_name(path): {
            module_of(name)
            for name in imports(ast.parse(path.read_text(encoding="utf-8")))
            if name.split(".")[0] == "rlm_jax"
        }
        - {module_name(path)}
        for path in MODULES
    }


def circle(edges: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle; empty where there is none."""
    left = dict(edges)
    while free := [x for x, imported in left.items() if not imported & left.keys()]:
        for module in free:
            del left[module]
    return sorted(left)


def test_no_circle_of_imports():
    assert circle(graph()) == []
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]


def test_a_system_imports_no_other_systems_recipe():
    """Recipes that hold a ``@recipe`` are systems; what they share stands apart."""
    texts = {module_name(path): path.read_text(encoding="utf-8") for path in MODULES}
    systems = {name for name, text in texts.items() if "\n@recipe(" in text}
    assert len(systems) > 10
    edges = graph()
    assert {name: edges[name] & systems for name in edges if edges[name] & systems} == (
        {}
    )


def test_nothing_imports_the_launchers_but_tests_and_notebooks():
    for folder in ("rlm_jax", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            names = imports(ast.parse(path.read_text(encoding="utf-8")))
            assert not [x for x in names if x.split(".")[0] == "experiments"], path


def count_lines(paths: Iterable[pathlib.Path]) -> int:
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def test_rooms_keep_their_size():
    launchers = list((ROOT / "experiments").glob("*.py"))
    assert count_lines(launchers) < 100 * len(launchers)
    rooms = {path.relative_to(PACKAGE).parts[0] for path in MODULES}
    sizes = {room: count_lines((PACKAGE / room).rglob("*.py")) for room in rooms}
    assert max(sizes.values()) <= count_lines(MODULES) / 5, sizes


@pytest.mark.parametrize("folder", ["ops", "methods", "report"])
def test_public_functions_have_docstrings(folder):
    bare = [
        f"{module_name(path)}.{node.name}"
        for path in MODULES
        if path.is_relative_to(PACKAGE / folder)
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert bare == []


def test_files_are_short_and_named_for_what_they_hold():
    lines = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in SOURCES
    }
    assert {name: count for name, count in lines.items() if count >= MAX_LINES} == {}
    assert [name for name in lines if name.endswith("utils.py")] == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("train.step", "from rlm_jax.methods import trime"),
        ("train.step", "from rlm_jax.ops import memory"),
        ("methods.trime", "import rlm_jax.data.batching"),
        ("methods.trime", "import flax.linen as nn"),
        ("ops.memory", "from rlm_jax.models import decoder"),
        ("ops.memory", "import optax"),
        ("train.loop", "import orbax.checkpoint as ocp"),
        ("data.corpora", "import tensorflow_datasets as tfds"),
        ("retrieval.datastore", "def f():\n    import pickle"),
        ("retrieval.datastore", "np.load(path, allow_pickle=True)"),
        ("report.plots", "try:\n    import matplotlib\nexcept ImportError: pass"),
        ("evaluate.qa", "print('hello')"),
        ("data.files", "lines = path.read_text().splitlines()"),
        ("methods.trime", "import jax\nfirst = jax.process_index() == 0"),
        ("evaluate.qa", "def f():\n    global x\n    x = 1"),
    ],
)
def test_rules_catch(module, source):
    assert violations(module, source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("train.step", "from rlm_jax.ops import collectives"),
        ("train.step", "from rlm_jax.method import Sums"),
        ("models.decoder", "import flax.linen as nn"),
        ("retrieval.scann", "def f():\n    from scann import scann_ops_pybind"),
        ("report.report", "from rlm_jax.version import __version__"),
    ],
)
def test_rules_allow(module, source):
    assert violations(module, source) == []
