"""Two writers of one folder, a writer that is killed, and a disk that is full."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import longcat
import pytest
from longcat.checkpoint import card
from longcat.checkpoint.convert import PRESETS, convert_checkpoint
from longcat.checkpoint.random_weights import preset_config, write_checkpoint
from longcat.checkpoint.verify import HASH_FILE, verify_checkpoint
from longcat.cli import main
from longcat.support.folder_lock import LOCK_FILE, FolderLock

from support.checkpoints import VARIANTS, make_checkpoint

SHARD = 60_000
ONE_WRITER = "another process is writing .*; expected one writer at a time. Wait until it ends"


@pytest.fixture
def source(tmp_path):
    make_checkpoint(str(tmp_path / "source"), seed=3, **VARIANTS["lite"])
    return tmp_path / "source"


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def convert(source, out, progress=None):
    return convert_checkpoint(source, out, PRESETS["int4"], max_shard_bytes=SHARD, progress=progress)


def make(out, progress=None):
    return write_checkpoint(out, preset_config("tiny", {"num_layers": 1}), progress=progress)


class Once:
    """Calls a function at the first progress."""

    def __init__(self, function):
        self.function = function
        self.called = False

    def __call__(self, done, total):
        if not self.called:
            self.called = True
            self.function()


def refused(second):
    def run():
        with pytest.raises(longcat.Error, match=ONE_WRITER) as caught:
            second()
        assert "\n" not in str(caught.value)

    return run


def test_a_second_convert_is_refused_and_the_first_is_whole(source, tmp_path):
    convert(source, tmp_path / "whole")
    out = tmp_path / "out"
    first = Once(refused(lambda: convert(source, out)))
    convert(source, out, first)
    assert first.called and files_of(out) == files_of(tmp_path / "whole")
    assert LOCK_FILE not in files_of(out) and not (tmp_path / "out.partial").exists()


def test_a_second_make_checkpoint_is_refused_and_the_first_is_whole(tmp_path):
    make(tmp_path / "whole")
    out = tmp_path / "out"
    make(out, first := Once(refused(lambda: make(out))))
    assert first.called and files_of(out) == files_of(tmp_path / "whole")
    assert not (tmp_path / "out.partial").exists()


def test_convert_and_make_checkpoint_exclude_each_other(source, tmp_path):
    out = tmp_path / "out"
    make(out, first := Once(refused(lambda: convert(source, out))))
    assert first.called and verify_checkpoint(out).ok


def test_a_second_write_hashes_is_refused(source):
    first = Once(refused(lambda: verify_checkpoint(source, write_hashes=True)))
    assert verify_checkpoint(source, write_hashes=True, progress=first).ok
    assert first.called and (source / HASH_FILE).exists() and not (source / LOCK_FILE).exists()
    assert verify_checkpoint(source, write_hashes=True).ok  # the lock is free again


def test_a_writer_that_ends_lets_the_next_one_in(tmp_path):
    folder = tmp_path / "folder"
    FolderLock("test", folder).release(folder)
    lock = FolderLock("test", folder)
    moved = tmp_path / "moved"
    folder.rename(moved)
    lock.release(moved)
    assert not list(moved.iterdir())
    FolderLock("test", folder).release(folder)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "deep")
    (tmp_path / "file").touch()
    for name in ("link", "file"):
        with pytest.raises(OSError):
            FolderLock("test", tmp_path / name)


def test_a_folder_that_is_gone_ends_the_tries(tmp_path, monkeypatch):
    """A process may stand in a folder that another one has removed: it is still a folder, and takes no files."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(FileNotFoundError):
        FolderLock("test", Path("."))


def test_a_refused_command_says_one_line(source, tmp_path, capsys):
    out = tmp_path / "out"
    (tmp_path / "out.partial").mkdir()
    lock = FolderLock("test", tmp_path / "out.partial")
    assert main(["convert", str(source), str(out), "--quant", "int8"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("longcat: [convert] another process is writing ") and error.count("\n") == 1
    lock.release(tmp_path / "out.partial")
    assert main(["convert", str(source), str(out), "--quant", "int8"]) == 0


KILLED = """
import os, signal, sys
from longcat.checkpoint import card
from longcat.checkpoint.convert import PRESETS, convert_checkpoint

def stop(done, total):
    if done > total / 2:
        os.kill(os.getpid(), signal.SIGKILL)

convert_checkpoint(sys.argv[1], sys.argv[2], PRESETS["int4"], max_shard_bytes=int(sys.argv[3]), progress=stop)
"""


def test_a_killed_convert_leaves_no_lock_and_goes_on(source, tmp_path):
    convert(source, tmp_path / "whole")
    out = tmp_path / "out"
    package = str(Path(longcat.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(source), str(out), str(SHARD)],
        env={**os.environ, "PYTHONPATH": package},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL and (tmp_path / "out.partial").exists()
    made = convert(source, out)
    assert made.resumed_files > 0 and files_of(out) == files_of(tmp_path / "whole")


def test_a_convert_killed_before_its_first_file_goes_on(source, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / LOCK_FILE).touch()
    convert(source, out)
    assert verify_checkpoint(out).ok and LOCK_FILE not in files_of(out)


def full_disk(path, *args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


@pytest.mark.parametrize("has_card", [False, True])
@pytest.mark.parametrize("step", ["card", "hashes", "rename"])
def test_a_disk_that_is_full_at_the_end(source, tmp_path, monkeypatch, step, has_card):
    """All weights are written by then: the next run goes on, and leaves the files of an undisturbed one."""
    if has_card:
        (source / "README.md").write_text("# Source\n")
    convert(source, tmp_path / "whole")
    out = tmp_path / "out"
    rename = Path.rename
    with monkeypatch.context() as patched:
        if step == "card":
            patched.setattr(card, "_card", lambda *args: full_disk(out))
        elif step == "hashes":
            patched.setattr(Path, "replace", full_disk)
        else:
            patched.setattr(Path, "rename", lambda path, to: full_disk(to) if to == out else rename(path, to))
        with pytest.raises(longcat.Error, match=r"\[convert\] .*: No space left on device"):
            convert(source, out)
    made = convert(source, out)
    assert made.resumed_files == made.files
    assert files_of(out) == files_of(tmp_path / "whole") and verify_checkpoint(out).ok


def test_a_line_of_hashes_that_was_cut_off_spoils_no_other(source, tmp_path):
    """As where the disk became full within the line, and the run went on later."""
    convert(source, tmp_path / "whole")
    out, partial = tmp_path / "out", tmp_path / "out.partial"

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, out, stop)
    with open(partial / HASH_FILE, "a") as sums:
        sums.write("0123456789abcdef  model-000")
    convert(source, out)
    assert files_of(out) == files_of(tmp_path / "whole")


@pytest.mark.parametrize("write", [convert, lambda source, out: make(out)])
def test_the_folder_where_one_is(source, tmp_path, monkeypatch, write):
    """ "." has no name of its own, and neither has the root of all folders."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write(source, ".")
    assert verify_checkpoint(tmp_path / "here").ok and not (tmp_path / "here.partial").exists()
    with pytest.raises(longcat.Error, match="/ exists; expected a new or an empty folder"):
        write(source, "/")


def test_the_lock_of_a_source_is_not_copied(source, tmp_path):
    (source / LOCK_FILE).touch()
    convert(source, tmp_path / "out")
    assert LOCK_FILE not in files_of(tmp_path / "out")


def test_hashes_on_a_full_disk_leave_nothing_behind(source, monkeypatch):
    write_text = Path.write_text

    def full(path, text, *args, **kwargs):
        write_text(path, text[: len(text) // 2], *args, **kwargs)
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    before = set(files_of(source))
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(longcat.Error, match=r"\[verify\] .*SHA256SUMS cannot be written: No space left on device"):
        verify_checkpoint(source, write_hashes=True)
    assert set(files_of(source)) == before
