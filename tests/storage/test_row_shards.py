"""Records in shards: a build that stops goes on, and another one is refused."""

import numpy as np
import pytest

from rlm_jax.errors import UserError
from rlm_jax.storage import row_shards

KIND = np.dtype([("a", "<i4", (2,)), ("b", "<f4")])
FORM, TOTAL = "test rows 1", 11


def records(start, stop):
    out = np.zeros(stop - start, KIND)
    out["a"] = np.arange(start, stop)[:, None] + [0, 100]
    out["b"] = np.arange(start, stop) / 7
    return out


def build(folder, make=records, **changes):
    options = {"identity": {"of": ("x", 1)}, "shard_size": 4} | changes
    return row_shards.build(folder, FORM, KIND, TOTAL, make, **options)


def test_what_was_made_is_there(tmp_path):
    done = []
    made = build(tmp_path / "rows", advance=done.append)
    np.testing.assert_array_equal(made, records(0, TOTAL))
    assert done == [0, 4, 4, 3]
    again = build(tmp_path / "rows", make=None)
    np.testing.assert_array_equal(again, made)


def test_a_build_that_stopped_goes_on(tmp_path):
    class Stops(Exception):
        pass

    asked = []

    def make(start, stop):
        asked.append(start)
        if len(asked) == 3:
            raise Stops
        return records(start, stop)

    with pytest.raises(Stops):
        build(tmp_path / "rows", make)
    assert not (tmp_path / "rows").exists()
    with pytest.raises(UserError, match="no finished records"):
        row_shards.open(tmp_path / "rows", FORM, KIND)
    with pytest.raises(UserError, match="holds of = .*another folder"):
        build(tmp_path / "rows", make, identity={"of": "y"})
    with pytest.raises(UserError, match="holds shard_size = 4"):
        build(tmp_path / "rows", make, shard_size=5)
    made = build(tmp_path / "rows", make)
    assert asked == [0, 4, 8, 8]
    build(tmp_path / "straight")
    assert made.tobytes() == records(0, TOTAL).tobytes()
    for name in ("rows", "manifest.json"):
        one, other = ((tmp_path / x / name).read_bytes() for x in ("rows", "straight"))
        assert one == other


def test_other_records_and_damaged_ones_are_refused(tmp_path):
    build(tmp_path / "rows")
    with pytest.raises(UserError, match="holds of = "):
        build(tmp_path / "rows", identity={"of": "y"})
    with pytest.raises(UserError, match="holds dtype = "):
        row_shards.open(tmp_path / "rows", FORM, np.dtype([("a", "<i4")]))
    path = tmp_path / "rows" / row_shards.FILE
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="not those that were written"):
        row_shards.open(tmp_path / "rows", FORM, KIND)
