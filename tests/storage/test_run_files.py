import pytest

from rlm_jax.errors import UserError
from rlm_jax.storage import run_files


@pytest.mark.parametrize("name", ["run.trec", "folder/run.trec.gz"])
def test_run_files(tmp_path, name):
    path = tmp_path / name
    run = {"q1": {"low": 0.1, "high": 1 / 3}, "q2": {"ä": -1e-30}}
    run_files.write(run, path, tag="bm25")
    assert run_files.read(path) == run
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    with run_files._open(path, path, "rb") as file:
        assert file.readline() == b"q1 Q0 high 1 0.3333333333333333 bm25\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"q1 Q0 a 1 1.0 t\nq1 a 2\n", "Line 2"), (b"q Q0 a 1 one t", "Line 1")],
    ids=["columns", "score"],
)
def test_bad_files(tmp_path, content, message):
    (tmp_path / "run").write_bytes(content)
    with pytest.raises(UserError, match=message):
        run_files.read(tmp_path / "run")
    with pytest.raises(UserError, match="no run at"):
        run_files.read(tmp_path / "other")
    with pytest.raises(UserError, match="An empty id"):
        run_files.write({"a": {"": 1.0}}, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("at", [0, 2, 3, -60, -40, -20, -5])
def test_a_damaged_gzip_file_is_named(tmp_path, at):
    path = tmp_path / "run.trec.gz"
    run = {f"q{i}": {f"p{j}": i / (j + 1) for j in range(9)} for i in range(9)}
    run_files.write(run, path)
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    for damaged in (data, data[:-9]):
        path.write_bytes(damaged)
        # Before the checksum at the end is reached, a line may be no line of a run.
        with pytest.raises(UserError, match=r"run.trec.gz is (no whole gzip|not 'que)"):
            run_files.read(path)
