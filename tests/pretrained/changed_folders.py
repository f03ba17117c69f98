"""Folders in Hugging Face's layout, changed as others' or damaged ones are."""

import json

from safetensors.numpy import load_file, save_file

WEIGHTS = "model.safetensors"


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(folder, change):
    arrays = load_file(folder / WEIGHTS)
    change(arrays)
    save_file(arrays, folder / WEIGHTS)


def divide(folder):
    """The weights in two files and an index of them."""
    arrays = load_file(folder / WEIGHTS)
    names = sorted(arrays)
    files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, some in files.items():
        save_file({n: arrays[n] for n in some}, folder / file)
    (folder / WEIGHTS).unlink()
    where = {n: file for file, some in files.items() for n in some}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": where}))
