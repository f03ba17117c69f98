import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from rlm_jax.errors import UserError
from rlm_jax.retrieval import datastore
from rlm_jax.storage import atomic

IDENTITY = {"encoder_step": 10, "model": "abc", "shape": (2, 3)}


def create(path, dtype="float32", num_entries=100, **changes):
    options = {"dim": 4, "identity": IDENTITY, "shard_size": 30} | changes
    return datastore.create(path, dtype=dtype, num_entries=num_entries, **options)


def entries(num=100, dim=4):
    rng = np.random.default_rng(0)
    keys = rng.normal(size=(num, dim)).astype(np.float32)
    return keys, rng.integers(0, 267_744, num).astype(np.int32)


@pytest.fixture
def published(tmp_path):
    writer = create(tmp_path / "store")
    writer.append(*entries())
    return writer.publish().directory


@pytest.mark.parametrize("dtype", datastore.DTYPES)
@pytest.mark.parametrize("batch", [1, 7, 30, 100])
def test_round_trip(tmp_path, dtype, batch):
    keys, values = entries()
    keys[3] = 0
    writer = create(tmp_path / "deep" / "store", dtype)
    for start in range(0, 100, batch):
        writer.append(keys[start : start + batch], values[start : start + batch])
    writer.publish()
    store = datastore.open(tmp_path / "deep" / "store", identity=IDENTITY)
    step = np.abs(keys).max(axis=1, keepdims=True) / 127
    error = {"float32": 0, "float16": 2**-11 * np.abs(keys), "int8": step / 2}[dtype]
    read = store.keys(0, 100)
    assert read.dtype == np.float32 and (np.abs(read - keys) <= error + 1e-7).all()
    assert (store.values(0, 100) == values).all()
    assert (store.keys(29, 61) == read[29:61]).all()
    assert store.keys(60, 60).shape == (0, 4)
    ids = np.array([[99, 0, 30], [29, -1, 0]])
    assert (store.gather_keys(ids) == np.where(ids[..., None] < 0, 0, read[ids])).all()
    assert (store.gather_values(ids) == np.where(ids < 0, -1, values[ids])).all()
    assert store.gather_values(ids).dtype == np.int32


def test_values_of_a_large_vocabulary_survive(tmp_path):
    values = np.array([267_743, 32_768, 65_536, 2**31 - 1])
    writer = create(tmp_path / "store", num_entries=4)
    writer.append(np.zeros((4, 4)), values)
    assert (writer.publish().values(0, 4) == values).all()


@pytest.mark.parametrize(
    ("dtype", "key", "value", "named"),
    [
        ("float32", np.nan, 0, "NaN"),
        ("float32", 1e300, 0, "infinity"),
        ("float16", 65_600.0, 0, "float32"),
        ("int8", np.inf, 0, "infinity"),
        ("float32", 0, 2**31, "int32"),
        ("float32", 0, 0.5, "int32"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, dtype, key, value, named):
    writer = create(tmp_path / "store", dtype, num_entries=1)
    with pytest.raises(UserError, match=named):
        writer.append(np.full((1, 4), key), np.array([value]))


def test_wrong_amounts_are_refused(tmp_path):
    writer = create(tmp_path / "store")
    keys, values = entries(101)
    with pytest.raises(UserError, match=r"keys \[n, 4\]"):
        writer.append(keys[:, :3], values)
    with pytest.raises(UserError, match="100 entries"):
        writer.append(keys, values)
    writer.append(keys[:99], values[:99])
    with pytest.raises(UserError, match="99 of 100"):
        writer.publish()


@pytest.mark.parametrize("dtype", datastore.DTYPES)
def test_a_killed_build_resumes(tmp_path, dtype):
    program = f"""
        import os, signal
        import numpy as np
        from rlm_jax.retrieval import datastore
        from rlm_jax.storage import atomic
        from tests.retrieval.test_datastore import create, entries

        def kill(path, data, write=atomic.write_bytes):
            if path.name == "00002.values":
                path.with_name("." + path.name + ".partial").write_bytes(b"half")
                os.kill(os.getpid(), signal.SIGKILL)
            return write(path, data)

        atomic.write_bytes = kill
        create({str(tmp_path / "store")!r}, {dtype!r}).append(*entries())
    """
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=root, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    with pytest.raises(UserError, match="run its build again"):
        datastore.open(tmp_path / "store")
    keys, values = entries()
    writer = create(tmp_path / "store", dtype)
    assert writer.num_written == 60
    writer.append(keys[60:], values[60:])
    writer.publish()
    resumed = datastore.open(tmp_path / "store")
    whole = create(tmp_path / "whole", dtype)
    whole.append(keys, values)
    assert resumed.checksum == whole.publish().checksum
    left = {path.name for path in resumed.directory.iterdir()}
    assert not [name for name in left if name.endswith(".partial")]


def test_a_build_of_something_else_is_not_continued(tmp_path):
    writer = create(tmp_path / "store")
    writer.append(*entries(40))
    with pytest.raises(UserError, match="encoder_step = 10 where 11"):
        create(tmp_path / "store", identity=IDENTITY | {"encoder_step": 11})
    with pytest.raises(UserError, match="dtype = 'float32' where 'int8'"):
        create(tmp_path / "store", dtype="int8")
    assert create(tmp_path / "store").num_written == 30


def test_a_published_datastore_is_not_overwritten(published):
    with pytest.raises(UserError, match="already"):
        create(published)


@pytest.mark.parametrize(
    "changes",
    [{"dim": 0}, {"num_entries": 0}, {"num_entries": 2**31}, {"dtype": "int16"}],
)
def test_impossible_forms_are_refused(tmp_path, changes):
    with pytest.raises(UserError):
        create(tmp_path / "store", **changes)


def test_every_flipped_byte_is_found(published):
    for path in published.iterdir():
        content = path.read_bytes()
        for place in (0, len(content) // 2, len(content) - 2):
            damaged = bytearray(content)
            damaged[place] ^= 1
            path.write_bytes(damaged)
            with pytest.raises(UserError, match="build it again"):
                datastore.open(published)
        path.write_bytes(content)
    datastore.open(published)


@pytest.mark.parametrize("name", ["00001.keys", "00003.values", "manifest.json"])
@pytest.mark.parametrize("verify", [True, False])
def test_truncated_and_missing_files_are_found(published, name, verify):
    path = published / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError):
        datastore.open(published, verify=verify)
    path.unlink()
    with pytest.raises(UserError):
        datastore.open(published, verify=verify)


def test_another_model_is_named(published):
    with pytest.raises(UserError, match="model = 'abc' where 'xyz'"):
        datastore.open(published, identity=IDENTITY | {"model": "xyz"})
    with pytest.raises(UserError, match="corpus = None where 'c'"):
        datastore.open(published, identity={"corpus": "c"})
    datastore.open(published, identity={"model": "abc"})
    manifest = json.loads((published / "manifest.json").read_text())
    manifest["identity"]["model"] = "xyz"  # by hand, to get past the check
    (published / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="damaged"):
        datastore.open(published)


def test_entries_out_of_range_are_refused(published):
    store = datastore.open(published)
    for call in (
        lambda: store.keys(0, 101),
        lambda: store.values(-1, 3),
        lambda: store.gather_keys(np.array([100])),
        lambda: store.gather_values(np.array([-2])),
    ):
        with pytest.raises(UserError, match="0:100"):
            call()


def test_an_identity_must_be_json(tmp_path):
    with pytest.raises(UserError, match="JSON"):
        create(tmp_path / "store", identity={"step": np.zeros(3)})


def test_a_full_disk_loses_no_finished_shard(tmp_path, monkeypatch):
    keys, values = entries()
    writer = create(tmp_path / "store")
    writer.append(keys[:40], values[:40])

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "fsync", full)
        with pytest.raises(UserError, match="first 30 entries are kept"):
            writer.append(keys[40:70], values[40:70])
    assert not list(writer.partial.glob(".*.partial"))
    writer = create(tmp_path / "store")
    assert writer.num_written == 30
    writer.append(keys[30:], values[30:])
    assert (writer.publish().keys(0, 100) == keys).all()


def test_a_small_file_system_fills_up(tmp_path):
    mount = shutil.which("mount")
    command = [mount or "", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)]
    if mount is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        keys, values = entries(4000, 32)
        writer = create(tmp_path / "store", dim=32, num_entries=4000, shard_size=1000)
        with pytest.raises(UserError, match="first 1000 entries are kept"):
            writer.append(keys, values)
        assert not list(writer.partial.glob(".*.partial"))
        subprocess.run([mount, "-o", "remount,size=2m", str(tmp_path)], check=True)
        writer = create(tmp_path / "store", dim=32, num_entries=4000, shard_size=1000)
        assert writer.num_written == 1000
        writer.append(keys[1000:], values[1000:])
        assert (writer.publish().keys(0, 4000) == keys).all()
        del writer
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)
