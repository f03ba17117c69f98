"""What every test shares: a CPU, a compile cache, parsed flags, the golden arrays."""

import gc
import importlib.metadata
import importlib.util
import os
import pathlib
import resource
from collections.abc import Callable, Iterator

# Before JAX is imported, which reads them. NPROC: on two cores the thread pool is
# otherwise too small for several simulated devices, and a collective can hang.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("NPROC", "16")
# Tests compile far more than they compute: LLVM need not try hard, and of what emits
# fusions the older one, which JAX 0.10 still has, takes a quarter of the time.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_parallel_codegen_split_count=1"
    + " --xla_cpu_use_fusion_emitters=false"
    * importlib.metadata.version("jaxlib").startswith("0.10."),
)
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(pathlib.Path(__file__).resolve().parent.parent / ".cache" / "jax"),
)

import jax
import numpy as np
import pytest
from absl import flags

from tests import typechecking

# Before a test imports one of the rooms.
typechecking.install()

TESTS = pathlib.Path(__file__).resolve().parent

# Tracing makes objects by the million, few of which are garbage in circles: looked for
# as often as Python does by itself, they cost a tenth of a test's time.
gc.set_threshold(100_000, 50, 100)


def pytest_configure(config: pytest.Config) -> None:
    del config
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    # Where an operation stands in the source is written into each program.
    jax.config.update("jax_traceback_in_locations_limit", 0)
    # Launchers read flags; a test calls their functions without a command line.
    flags.FLAGS.mark_as_parsed()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    has_torch = importlib.util.find_spec("torch") is not None
    for item in items:
        if item.get_closest_marker("torch") and not has_torch:
            item.add_marker(pytest.mark.skip(reason="torch is not installed"))
        if item.get_closest_marker("gpu") and jax.default_backend() == "cpu":
            item.add_marker(pytest.mark.skip(reason="there is no accelerator"))


@pytest.fixture(autouse=True)
def no_rank_promotion_in_ops(request: pytest.FixtureRequest) -> Iterator[None]:
    """An equation that broadcasts by accident is wrong; models may broadcast."""
    if TESTS / "ops" in request.path.parents:
        with jax.numpy_rank_promotion("raise"):
            yield
    else:
        yield


@pytest.fixture(autouse=True, scope="module")
def programs_go_once_memory_is_short() -> Iterator[None]:
    """A worker would keep all that it compiles, which other files seldom need."""
    yield
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 1.5 * 2**20:  # KiB
        jax.clear_caches()


@pytest.fixture(scope="session")
def golden_folder() -> pathlib.Path:
    """$RLM_GOLDEN or tests/golden: arrays, and in ``hf`` folders of tiny models."""
    return pathlib.Path(os.environ.get("RLM_GOLDEN") or TESTS / "golden")


@pytest.fixture(scope="session")
def golden(golden_folder) -> Callable[[str], dict[str, np.ndarray]]:
    """The arrays of one golden file by name.

    ``golden("trime_losses")`` is a dict of arrays; its ``meta`` is a JSON string.
    """

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(golden_folder / f"{name}.npz", allow_pickle=False) as arrays:
            return dict(arrays)

    return load
