"""Models by their name on the Hugging Face hub: `folder_of` gives a folder of them."""

import os
import re
from pathlib import Path
from typing import Any

from rlm_jax import terminal
from rlm_jax.errors import UserError

# An account and a model, or a model alone, as the hub has them.
_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")
_FILES = ("*.json", "*.safetensors", "vocab.txt", "1_Pooling/*", "2_Normalize/*")
_SECONDS = 10  # to wait for an answer


def folder_of(name: str | os.PathLike) -> Path:
    """The folder of that name, or one with the files of the hub's model of that name.

    What was fetched once is kept by huggingface_hub, and read without a network.

    Raises:
      UserError: there is neither, the extra ``hub`` is not installed, or there is no
        network.
    """
    folder = Path(name)
    if os.path.exists(folder) or _ID.fullmatch(os.fspath(name)) is None:
        return folder
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            f"There is no folder {name}; to take it from the Hugging Face hub, "
            'pip install "rlm_jax[hub]".'
        ) from error
    own: dict[str, Any] = {"endpoint": os.environ.get("HF_ENDPOINT")}
    own |= {"allow_patterns": list(_FILES), "etag_timeout": _SECONDS}
    name = os.fspath(name)
    try:
        folder = Path(huggingface_hub.snapshot_download(name, **own))
    except Exception as error:  # networks, and the library, fail in many ways
        missing = type(error).__name__ in (
            "RepositoryNotFoundError", "HFValidationError", "GatedRepoError",
        )  # fmt: skip
        why = (
            "the Hugging Face hub gives nobody a model of that name"
            if missing
            else "nothing came from the Hugging Face hub"
        )
        raise UserError(
            f"There is no folder {name}, and {why} ({type(error).__name__}): check the "
            "name or the network, or name a folder that holds the model."
        ) from error
    terminal.say(f"{name} of the Hugging Face hub: {folder}")
    return folder


def require(**named: str) -> None:
    """Before any other work: that there is a model of each name that is not empty.

    Args:
      named: a field of the configuration and what it names.

    Raises:
      UserError: as `folder_of`, or nothing is there.
    """
    for field, name in named.items():
        if name and not os.path.exists(folder_of(name)):
            raise UserError(
                f"There is nothing at {name}, which {field} names: check the path, or "
                "name the folder of a model or the workdir of a run."
            )
