"""Models by name: a hub on loopback, none at all, and names that are folders."""

import functools
import hashlib
import http.server
import json
import os
import sys
import threading

import pytest

from rlm_jax.errors import UserError
from rlm_jax.side_files import hub

SHA = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"model_type": "bert"}',
    "1_Pooling/config.json": b'{"pooling_mode": "cls"}',
    "vocab.txt": b"[PAD]\n",
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"a pickle, which nobody asks for",
}


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as a download needs."""

    asked: list[str]

    def __init__(self, asked, *arguments):
        self.asked = asked
        super().__init__(*arguments)

    def log_message(self, *arguments):
        pass

    def answer(self, data: bytes, body: bool, status: int = 200, **headers: str):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body: bool = True):
        self.asked.append(self.path)
        path = self.path.partition("?")[0]
        if "account/missing" in path:
            missing = {"X_Error_Code": "RepoNotFound"}
            return self.answer(b"{}", body, 404, **missing)
        if "/tree/" in path:
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": SHA}
                for name, data in FILES.items()
            ]
            return self.answer(
                json.dumps(tree).encode(), body, Content_Type="application/json"
            )
        if path.startswith("/api/models/"):
            siblings = [{"rfilename": name} for name in FILES]
            told = {"id": "account/model", "sha": SHA, "siblings": siblings}
            return self.answer(
                json.dumps(told).encode(), body, Content_Type="application/json"
            )
        name = path.partition(f"/resolve/{SHA}/")[2]
        if name not in FILES:
            return self.answer(b"", body, 404, X_Error_Code="EntryNotFound")
        tag = hashlib.sha1(FILES[name]).hexdigest()
        return self.answer(
            FILES[name], body, ETag=f'"{tag}"', X_Repo_Commit=SHA, Accept_Ranges="bytes"
        )


@pytest.fixture
def serving(tmp_path, monkeypatch):
    """What the hub on loopback was asked for."""
    constants = pytest.importorskip("huggingface_hub.constants")
    asked: list[str] = []
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Hub, asked)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    yield asked
    server.shutdown()
    server.server_close()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["account/model", "model"])
def test_a_model_is_fetched_once(serving, name, capsys):
    folder = hub.folder_of(name)
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert found == FILES.keys() - {"pytorch_model.bin"}
    for name_ in found:
        assert (folder / name_).read_bytes() == FILES[name_]
    assert str(folder) in capsys.readouterr().err
    fetched = [path for path in serving if "/resolve/" in path]
    assert hub.folder_of(name) == folder
    assert [path for path in serving if "/resolve/" in path] == fetched


@pytest.mark.filterwarnings("ignore")
def test_no_model_of_that_name(serving):
    with pytest.raises(UserError, match="gives nobody a model of that name"):
        hub.folder_of("account/missing")


@pytest.mark.filterwarnings("ignore")
def test_no_network(serving, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(
        UserError, match="nothing came from the Hugging Face hub"
    ) as told:
        hub.folder_of("account/elsewhere")
    assert "\n" not in str(told.value)


def test_without_the_extra(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r'pip install "rlm_jax\[hub\]"'):
        hub.folder_of("gpt2")


@pytest.mark.parametrize(
    "name", ["/whole/path", "../up", "a/b/c", "./here", "~/home", "two words", "there"]
)
def test_folders_are_left_alone(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    os.mkdir("there")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert str(hub.folder_of(name)) == name.removeprefix("./")
