"""Small files of a checkpoint that are pipes, devices, sockets, links or too large."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import longcat
import pytest
from longcat.support.files import read_bytes, read_json, read_json_object, read_text

from support.sanitizers import sanitizer

TINY = Path(__file__).parents[2] / "examples" / "longcat-tiny"
SECONDS = 60  # the limit of a process that must not wait for a pipe


@pytest.fixture
def tiny_copy(tmp_path):
    """The example with links to its files, as the Hub's cache has them."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in TINY.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


def put(path, kind):
    path.unlink(missing_ok=True)
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    elif kind == "a folder":
        path.mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))


@pytest.mark.parametrize("kind", ["a pipe", "a device", "a folder"])
def test_only_regular_files_are_read(tmp_path, kind):
    path = tmp_path / "config.json"
    put(path, kind)
    for read in (read_bytes, read_text, read_json, read_json_object):
        with pytest.raises(longcat.Error, match=rf"^\[x\] {path} is {kind}; expected a regular file$"):
            read(path, "[x]")


def test_a_socket_is_refused(tmp_path):
    put(tmp_path / "s", "a socket")
    with pytest.raises(longcat.Error, match=r"^\[x\] .*/s cannot be read: No such device or address$"):
        read_bytes(tmp_path / "s", "[x]")


def test_links_and_limits(tmp_path):
    (tmp_path / "blob").write_bytes(b'{"a": "\xc3\xa9"}\r\n')
    (tmp_path / "link").symlink_to(tmp_path / "blob")
    link = tmp_path / "link"
    assert read_json_object(link, "[x]") == {"a": "é"} and read_text(link, "[x]") == '{"a": "é"}\n'
    size = (tmp_path / "blob").stat().st_size
    assert len(read_bytes(link, "[x]", size)) == size
    with pytest.raises(longcat.Error, match=r"^\[x\] .*link has more than 12 B; expected a smaller file$"):
        read_bytes(link, "[x]", size - 1)
    with pytest.raises(longcat.Error, match="has more than 10 B; expected a smaller file"):
        read_bytes("/proc/self/status", "[x]", 10)  # its size is said to be 0
    assert read_json_object(tmp_path / "missing", "[x]") == {}
    with pytest.raises(longcat.Error, match=r"missing cannot be read: No such file or directory$"):
        read_bytes(tmp_path / "missing", "[x]")
    (tmp_path / "list").write_text("[1]")
    with pytest.raises(longcat.Error, match="not an object; expected a JSON object"):
        read_json_object(tmp_path / "list", "[x]")
    (tmp_path / "deep").write_text("[" * 99999)
    with pytest.raises(longcat.Error, match="deep is not valid: .*; expected JSON"):
        read_json(tmp_path / "deep", "[x]")


SHARD = next(TINY.glob("*.safetensors")).name
# What reads each file, in a process that a waiting open would hang.
READERS = {
    "generation_config.json": "longcat.Engine(folder)",
    "tokenizer.json": "longcat.Engine(folder).encode('a')",
    "chat_template.jinja": "longcat.Engine(folder).chat_template",
    "tokenizer_config.json": "longcat.Engine(folder).chat_template",
    "config.json": "longcat.Engine(folder)",
    SHARD: "longcat.Engine(folder)",
    "calibration": "cli.main(['convert', folder, folder + '/out', '--quant', 'int4', '--calibrate', path])",
    "template": "longcat.Engine(folder, chat_template=path).chat_template",
    "tools": "load_tools(path)",
    "SHA256SUMS": "verify_checkpoint(folder)",
}
# An endless file must not take the machine's memory. A sanitizer's shadow memory alone is larger than this limit.
LIMIT = "" if sanitizer() else "resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))"
PROGRAM = """
import resource, sys
import longcat
from longcat import cli
from longcat.checkpoint.verify import verify_checkpoint
from longcat.cli.chat.conversation import load_tools
folder, path = sys.argv[1:3]
{limit}
try:
    result = {call}
except (longcat.Error, ValueError) as error:
    print(error)
else:
    print([c.detail for c in result.checks if c.status == "FAIL"] if hasattr(result, "checks") else result)
"""


@pytest.mark.parametrize("kind", ["a pipe", "a device"])
@pytest.mark.parametrize("name", READERS)
def test_readers_refuse_what_is_no_file(tiny_copy, name, kind):
    path = tiny_copy / name
    put(path, kind)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(call=READERS[name], limit=LIMIT), str(tiny_copy), str(path)],
        env={**os.environ, "PYTHONPATH": str(Path(longcat.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    said = done.stdout + done.stderr
    assert name in said and ("regular file" in said or "does not exist" in said), said
    assert "Traceback" not in said


def test_verify_reports_each_file_and_waits_for_none(tmp_path):
    shutil.copytree(TINY, tmp_path / "model")
    for name in ("tokenizer.json", "generation_config.json", "chat_template.jinja"):
        put(tmp_path / "model" / name, "a pipe")
    done = subprocess.run(
        [sys.executable, "-m", "longcat", "verify", str(tmp_path / "model"), "--json"],
        env={**os.environ, "PYTHONPATH": str(Path(longcat.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    failed = [check["name"] for check in json.loads(done.stdout)["checks"] if check["status"] == "FAIL"]
    assert failed == ["tokenizer", "chat template", "generation"]


def test_a_folder_of_links_loads(tiny_copy):
    with longcat.Engine(tiny_copy) as engine:
        assert engine.chat_template.source and engine.encode("a")
