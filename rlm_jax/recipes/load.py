"""Opens what a run has left, or a published model, as what it is.

rlm_jax.load("runs/lm").log_probs(tokens, lengths, 1)        a language model
rlm_jax.load("model.gguf").tokenizer.encode("a text")        a published one
rlm_jax.load("data/all-MiniLM-L6-v2").encode(["a text"])     an encoder
rlm_jax.load("runs/dpr").search(["a question"], 5)           a retriever
rlm_jax.load("runs/fid").tokenizer                           a reader
"""

import os

from rlm_jax.errors import UserError
from rlm_jax.pretrained import decoders
from rlm_jax.readers import reader
from rlm_jax.readers.reader import ReaderModel
from rlm_jax.recipes import base_lm, runs
from rlm_jax.recipes.base_lm import BaseLM
from rlm_jax.recipes.language_model import DataConfig
from rlm_jax.retrievers import encoder_towers, published_index
from rlm_jax.retrievers.encoder_towers import Tower
from rlm_jax.retrievers.published_index import Retriever
from rlm_jax.side_files import hub
from rlm_jax.storage import gguf_files

Loaded = BaseLM | Tower | Retriever | ReaderModel


def load(name: str | os.PathLike, *, dtype: str = "float32") -> Loaded:
    """What a folder, or a GGUF file, holds.

    A run that can be searched is a retriever; one with a trained encoder alone is that
    encoder, one that trained a reader is that reader; any other run is its language
    model. A published folder is what the
    ``model_type`` of its config.json says.

    Raises:
      UserError: there is nothing to load, or it is damaged.
    """
    if gguf_files.is_gguf(name):
        return base_lm.load(os.fspath(name), DataConfig(), dtype=dtype)
    folder = hub.folder_of(name)
    if os.path.isfile(folder / published_index.FILE):
        return published_index.open_run(folder)
    config = runs.stored(folder)
    if not config:
        raise UserError(
            f"There is nothing to load in {folder}; name the workdir of a run, or a "
            "folder with config.json and model.safetensors."
        )
    kind = config.get("model_type")
    if kind in reader.KINDS or (folder / reader.FOLDER / "config.json").is_file():
        return reader.load(folder)
    if "system" not in config and kind not in decoders.KINDS:
        return encoder_towers.load(folder)
    if "system" in config and not (folder / "checkpoints").exists():
        if (folder / "encoder" / "config.json").is_file():
            return encoder_towers.load(folder)
    return base_lm.load(str(folder), DataConfig(), dtype=dtype)
