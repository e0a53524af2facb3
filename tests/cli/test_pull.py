"""`longcat pull` against a Hub on this machine: resume, hashes, refusals; names in the cache for every command."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections import namedtuple
from pathlib import Path

import longcat
import pytest
from longcat.cli import main
from longcat.cli.download import transfer
from longcat.cli.download.transfer import _Redirects
from longcat.server.settings import served_name
from longcat.support.hub import hub_snapshot, local_checkpoint

from support.fake_hub import COMMIT, fake_hub

NAME = "org/model"
SHARD = "model-00001-of-00002.safetensors"


@pytest.fixture
def hub(tiny, tmp_path, monkeypatch):
    """A Hub with the example checkpoint, and empty caches."""
    for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "MODELSCOPE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    monkeypatch.setattr("huggingface_hub.get_token", lambda: os.environ.get("HF_TOKEN"))
    monkeypatch.setattr(transfer, "RETRY_SECONDS", 0.01)
    with fake_hub(tiny) as found:
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", found.url)
        yield found


def pull(capsys, *arguments: str) -> Path:
    """Pulls; the folder that the command prints."""
    assert main(["pull", NAME, *arguments]) == 0, capsys.readouterr().err
    captured = capsys.readouterr()
    assert "each with the hash" in captured.err and "\r" not in captured.err  # no bar outside a terminal
    return Path(captured.out.strip())


def error_of(capsys, *arguments: str, code: int = 1) -> str:
    assert main(["pull", *arguments]) == code
    error = capsys.readouterr().err
    assert error.startswith("longcat: [pull] ") and error.count("\n") == 1, error
    return error


def same(folder: Path, tiny: str) -> bool:
    return all((folder / path.name).read_bytes() == path.read_bytes() for path in Path(tiny).iterdir())


def test_a_pulled_name_works_in_every_command(hub, tiny, capsys):
    assert main(["generate", NAME, "Once"]) == 1
    assert f"Download it: longcat pull {NAME}\n" in capsys.readouterr().err
    folder = pull(capsys)
    assert folder == Path(os.environ["HF_HOME"], "hub", "models--org--model", "snapshots", COMMIT) and same(
        folder, tiny
    )
    assert main(["generate", NAME, "Once", "--max-tokens", "3", "--temperature", "0"]) == 0
    assert capsys.readouterr().out.startswith("Once")
    assert main(["plan", NAME, "--bandwidth", "1"]) == 0 and main(["verify", NAME]) == 0
    with longcat.Engine(NAME) as engine:
        assert engine.model == str(folder)
    assert served_name(engine.model) == NAME


def test_the_cache_is_the_one_of_huggingface_hub(hub, capsys):
    from huggingface_hub import scan_cache_dir, try_to_load_from_cache

    folder = pull(capsys)
    cache = str(folder.parents[2])
    assert try_to_load_from_cache(NAME, "config.json", cache_dir=cache) == str(folder / "config.json")
    [found] = scan_cache_dir(cache).repos
    assert (found.repo_id, found.refs["main"].commit_hash) == (NAME, COMMIT)


def test_a_second_pull_fetches_nothing(hub, capsys):
    pull(capsys)
    hub.asked.clear()
    pull(capsys)
    assert hub.downloads() == []


def test_a_folder_of_ones_own(hub, tiny, capsys, tmp_path):
    assert pull(capsys, "--local-dir", str(tmp_path / "here")) == tmp_path / "here"
    assert same(tmp_path / "here", tiny) and not hub_snapshot(NAME)


def test_modelscope(hub, tiny, capsys, monkeypatch):
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "secret")
    folder = pull(capsys, "--from", "modelscope")
    assert folder == Path(os.environ["MODELSCOPE_CACHE"], "hub", "models", "org", "model") and same(folder, tiny)
    assert local_checkpoint(NAME) == str(folder)
    assert {key for _, _, key in hub.asked} == {"Bearer secret"}


def test_a_lost_connection_is_resumed_from_the_last_byte(hub, tiny, capsys):
    hub.cut_after = 5000
    assert same(pull(capsys), tiny)
    assert (SHARD, "bytes=5000-") in hub.downloads()


def test_an_interrupted_pull_goes_on(hub, tiny, capsys, tmp_path):
    """Ctrl-C: one line, exit code 130, and the next run asks for the rest alone."""
    hub.stalls.set()
    done = subprocess.Popen([sys.executable, "-m", "longcat", "pull", NAME], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not list(Path(os.environ["HF_HOME"]).rglob("*.incomplete")) and time.monotonic() < deadline:
        time.sleep(0.05)
    done.send_signal(signal.SIGINT)
    time.sleep(0.7)  # the threads are to stop before they get more
    hub.go.set()
    _, error = done.communicate(timeout=40)
    assert done.returncode == 130 and "Run it again to resume" in error and error.count("\n") == 1, error
    hub.stalls.clear()
    held = {path.name: path.stat().st_size for path in Path(os.environ["HF_HOME"]).rglob("*.incomplete")}
    assert held
    hub.asked.clear()
    assert same(pull(capsys), tiny)
    assert any(ranged is not None for _, ranged in hub.downloads())


def test_a_wrong_byte_is_fetched_again_and_twice_is_refused(hub, tiny, capsys):
    hub.wrong = {SHARD}
    folder = pull(capsys)
    assert same(folder, tiny) and len([name for name, _ in hub.downloads() if name == SHARD]) == 2
    blob = (folder / SHARD).resolve()
    blob.write_bytes(b"?" + blob.read_bytes()[1:])  # damage on the disk is found as well
    assert same(pull(capsys), tiny)
    shutil.rmtree(os.environ["HF_HOME"])
    hub.wrong = Always({SHARD})
    assert f"{SHARD} has another hash than {hub.url} lists, twice" in error_of(capsys, NAME)


class Always(set):
    def discard(self, item: object) -> None:
        pass


def test_a_full_disk_is_told_before(hub, capsys, monkeypatch, tmp_path):
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda _: Usage(1, 1, 1_000_000))
    error = error_of(capsys, NAME)
    assert "needs " in error and f"1.00 MB are free in {tmp_path}" in error and "--local-dir" in error
    assert hub.downloads() == []


def test_a_disk_that_fills_meanwhile_is_told(hub, capsys, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(transfer.Transfer, "_read_on", full)
    assert "the disk is full at " in error_of(capsys, NAME)


@pytest.mark.parametrize(
    "status, code, said",
    [
        (401, "RepoNotFound", "has no org/model, or it is private (401). Check the name, or set HF_TOKEN."),
        (404, "RepoNotFound", "has no org/model, or it is private (404)"),
        (403, "GatedRepo", "refuses org/model (403): it is open to accepted users only. Ask for access at"),
        (403, "", "refuses org/model (403). Ask for access"),
        (404, "RevisionNotFound", "org/model has no revision v9; expected a branch, tag or commit"),
        (429, "", "takes no more requests from here now (429)"),
        (500, "", "answers 500 for org/model; expected 200"),
    ],
)
def test_refusals_are_one_line(hub, capsys, status, code, said):
    hub.status, hub.error_code = status, code
    assert said in error_of(capsys, NAME, "--revision", "v9")


@pytest.mark.parametrize("status, said", [(401, "private (401)"), (403, "(403)"), (404, "(404)")])
def test_refusals_of_modelscope_are_one_line(hub, capsys, status, said):
    hub.status = status
    error = error_of(capsys, NAME, "--from", "modelscope")
    assert said in error and "MODELSCOPE_API_TOKEN" in error


def test_no_network_is_one_line(hub, capsys, monkeypatch):
    for source, variable in (("hub", "HF_ENDPOINT"), ("modelscope", "MODELSCOPE_ENDPOINT")):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
        assert "http://127.0.0.1:9 cannot be reached: " in error_of(capsys, NAME, "--from", source)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE is set" in error_of(capsys, NAME)


def test_one_writer_at_a_time(hub, capsys, tmp_path):
    from longcat.support.folder_lock import FolderLock

    folder = tmp_path / "here"
    lock = FolderLock("pull", folder)
    assert "another process is writing" in error_of(capsys, NAME, "--local-dir", str(folder))
    lock.release(folder)
    assert pull(capsys, "--local-dir", str(folder)) == folder and not (folder / ".longcat.lock").exists()
    (tmp_path / "file").write_text("")
    assert "cannot be written: " in error_of(capsys, NAME, "--local-dir", str(tmp_path / "file" / "x"))


def test_names_and_paths_are_checked(hub, capsys, tmp_path):
    assert 'is no name of a model; expected "org/name"' in error_of(capsys, "no name", code=2)
    hub.files["../outside"] = b"x"
    assert "expected a path inside the model's folder" in error_of(capsys, NAME)
    assert not list(tmp_path.rglob("outside"))


def test_a_model_of_another_kind_is_refused_before_its_weights(hub, capsys):
    config = json.loads(hub.files["config.json"]) | {"architectures": ["OtherForCausalLM"], "model_type": "other"}
    hub.files["config.json"] = json.dumps(config).encode()
    hub.files[SHARD] = hub.files[SHARD] + bytes(1 << 20)
    assert main(["pull", NAME]) == 1
    error = capsys.readouterr().err
    assert "config.json" in error and error.count("\n") == 1 and SHARD not in dict(hub.downloads())


def test_a_model_that_lacks_a_file_is_told(hub, capsys):
    """Its source has it so: the files are kept, and no folder is printed for a script to go on with."""
    del hub.files["model-00002-of-00002.safetensors"]
    assert main(["pull", NAME]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and "longcat: [pull] headers: " in captured.err


@pytest.mark.parametrize("field", ["sha", "blobId", "sha256"])
def test_a_hash_that_is_a_path_writes_nothing(hub, capsys, field, tmp_path):
    """Hashes name files of the cache. A mirror that lists paths in their place could write anywhere."""
    send = hub._send
    hashes = re.compile(rf'("{field}": ")[0-9a-f]+'.encode())
    hub._send = lambda request, body, *rest: send(request, hashes.sub(rb"\1../../../../outside", body), *rest)
    before = set(tmp_path.rglob("*"))
    assert main(["pull", NAME]) == 1
    assert "[pull] the source lists a hash '../../../../outside'; expected letters" in capsys.readouterr().err
    assert set(tmp_path.rglob("*")) == before and not hub.downloads()


def test_an_answer_longer_than_listed_is_left(hub, capsys):
    """It may have no end, and would fill the disk."""
    sent = []

    def endless(request, name):
        request.send_response(200)
        request.end_headers()
        request.close_connection = True
        with contextlib.suppress(OSError):
            for _ in range(64):
                sent.append(request.wfile.write(bytes(1 << 20)))

    hub._send_file = endless
    assert main(["pull", NAME]) == 1
    assert "has another hash than" in capsys.readouterr().err
    assert sum(sent) < 8 * (32 << 20)  # four files at once, twice each


def test_the_key_is_not_sent_in_the_clear():
    """A server may send its clients from https to http."""
    for begin, end, has_key in (("https", "http", False), ("http", "https", True), ("https", "https", True)):
        request = urllib.request.Request(f"{begin}://hub/a", headers={"Authorization": "Bearer secret"})
        new = _Redirects().redirect_request(request, None, 302, "Found", {}, f"{end}://hub/b")
        assert new.has_header("Authorization") == has_key


def test_the_key_goes_to_its_host_alone(hub, tiny, capsys, monkeypatch):
    """Downloads of the Hub go on at another host, which has no use for the key."""
    monkeypatch.setenv("HF_TOKEN", "secret")
    with fake_hub(tiny) as other:
        answer = hub.answer

        def redirect(request):
            if "/resolve/" in request.path:
                hub.asked.append((request.path, None, request.headers.get("Authorization")))
                request.send_response(302)
                request.send_header("Location", other.url + request.path)
                request.send_header("Content-Length", "0")
                request.end_headers()
            else:
                answer(request)

        hub.answer = redirect
        assert same(pull(capsys), tiny)
        assert {key for _, _, key in hub.asked} == {"Bearer secret"} and {key for _, _, key in other.asked} == {None}


def test_hashes_are_those_of_git_and_sha256(hub, capsys):
    folder = pull(capsys)
    data = (folder / "config.json").read_bytes()
    assert (folder / "config.json").resolve().name == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    shard = (folder / SHARD).read_bytes()
    assert (folder / SHARD).resolve().name == hashlib.sha256(shard).hexdigest()
