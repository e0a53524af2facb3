"""Compiles untrusted grammars in a child process first, which can be ended.

llguidance limits what it can; a few patterns of a JSON schema in `allOf` still keep it busy for minutes, and a thread
cannot be ended. So a process of its own goes first, with a deadline and a limit of memory. What it compiled in time,
this one compiles too.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import resource
import struct
import sys
from collections import OrderedDict
from typing import BinaryIO

from longcat.support.child_process import environment

_NUM_PROCESSES = 2
_START_SECONDS = 30.0  # for a process to load the tokenizer
_MAX_BYTES = 64 << 20  # for a grammar
_MAX_KNOWN = 1024
_LENGTH = struct.Struct("<I")


class GrammarTooHard(ValueError):
    """The grammar took more time or memory than allowed."""


class GrammarChecker:
    """Checks whether a grammar compiles within the limits. One event loop may use it.

    Args:
        tokenizer_text: a tokenizer.json.
        eos_token_ids: the ids that end a completion.
        timeout: for a grammar [s].
    """

    def __init__(self, tokenizer_text: str, vocab_size: int, eos_token_ids: list[int], timeout: float):
        setup = {
            "tokenizer": tokenizer_text,
            "vocab_size": vocab_size,
            "eos_token_ids": eos_token_ids,
            "timeout": timeout,
            "max_bytes": _MAX_BYTES,
        }
        self._setup = json.dumps(setup).encode()
        self._timeout = timeout
        self._slots = asyncio.Semaphore(_NUM_PROCESSES)
        self._idle: list[asyncio.subprocess.Process] = []
        self._replacement: asyncio.Future[None] | None = None  # kept from being collected
        self._known: OrderedDict[bytes, None] = OrderedDict()  # digests of what compiled

    async def check(self, source: str) -> None:
        """Returns once it is safe to compile the grammar in this process.

        Raises:
            GrammarTooHard: it takes too long, or too much memory.
            ValueError: it is malformed.
        """
        data = source.encode()
        digest = hashlib.sha256(data).digest()
        if digest in self._known:
            self._known.move_to_end(digest)
            return
        async with self._slots:
            error = await self._ask(data)
        if error is not None:
            raise ValueError(error)
        self._known[digest] = None
        if len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)

    async def _ask(self, data: bytes) -> str | None:
        process = self._take_idle() or await self._start()
        try:
            line = await asyncio.wait_for(_talk(process, data), self._timeout)
        except asyncio.TimeoutError:
            limit = f"{self._timeout:g} s"
            raise GrammarTooHard(f"the grammar takes longer than {limit} to compile: make it smaller") from None
        else:
            if not line:
                limit = f"{_MAX_BYTES >> 20} MiB"
                raise GrammarTooHard(f"the grammar takes more than {limit} to compile: make it smaller")
            self._idle.append(process)
            error: str | None = json.loads(line)
            return error
        finally:
            if process not in self._idle:
                await _kill(process)
                self._replacement = asyncio.ensure_future(self._replace())

    def _take_idle(self) -> asyncio.subprocess.Process | None:
        while self._idle:
            process = self._idle.pop()
            if process.returncode is None:  # it has not been ended meanwhile
                return process
        return None

    async def _replace(self) -> None:
        """Starts a process for the next grammar, so that the grammar need not wait for it."""
        process = await self._start()
        if len(self._idle) < _NUM_PROCESSES:
            self._idle.append(process)
        else:
            await _kill(process)

    async def _start(self) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            __name__,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment(),
            start_new_session=True,  # a Ctrl-C is not for it
        )
        try:
            ready = await asyncio.wait_for(_talk(process, self._setup), _START_SECONDS)
        except BaseException:
            await _kill(process)
            raise
        if not ready:
            await _kill(process)
            raise RuntimeError("the process that checks grammars does not start")
        return process


async def _talk(process: asyncio.subprocess.Process, data: bytes) -> bytes:
    """Sends one message; the line that comes back, or nothing when the process has ended."""
    assert process.stdin is not None and process.stdout is not None
    with contextlib.suppress(ConnectionError):
        process.stdin.write(_LENGTH.pack(len(data)) + data)
        await process.stdin.drain()
    return await process.stdout.readline()


async def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()


# --- in the process ------------------------------------------------------------------------------------------------


def _read(stream: BinaryIO) -> bytes | None:
    head = stream.read(_LENGTH.size)
    return stream.read(_LENGTH.unpack(head)[0]) if len(head) == _LENGTH.size else None


def _answer(value: object) -> None:
    sys.stdout.buffer.write(json.dumps(value).encode() + b"\n")
    sys.stdout.buffer.flush()


def _limit(which: int, value: int) -> None:
    _, hard = resource.getrlimit(which)
    resource.setrlimit(which, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def main() -> None:
    """Compiles the grammars on standard input, until that ends."""
    from longcat.request.structured import compile_source, make_vocabulary

    setup = json.loads(_read(sys.stdin.buffer) or b"{}")
    vocabulary = make_vocabulary(setup["tokenizer"], setup["vocab_size"], setup["eos_token_ids"])
    compile_source('{"grammars": [{"lark_grammar": "start: \\"a\\""}]}', vocabulary)
    with open("/proc/self/status") as status:
        used = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData:"))
    _limit(resource.RLIMIT_DATA, used + setup["max_bytes"])
    _limit(resource.RLIMIT_CORE, 0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # a grammar that takes all memory makes it complain at length
    _answer("ready")
    while (source := _read(sys.stdin.buffer)) is not None:
        times = resource.getrusage(resource.RUSAGE_SELF)
        deadline = int(times.ru_utime + times.ru_stime + setup["timeout"]) + 2  # for the case that the server is gone
        _limit(resource.RLIMIT_CPU, deadline)
        try:
            compile_source(source.decode(), vocabulary)
            _answer(None)
        except ValueError as error:
            _answer(str(error))


if __name__ == "__main__":
    main()
