"""Untrusted grammars are first compiled in a worker, which can be stopped.

llguidance has limits of its own, but a few patterns of a JSON schema in `allOf` still keep it busy for minutes. A
thread cannot be ended. So this process compiles only grammars that a worker has compiled in time.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from longcat.engine.text import CheckpointText
from longcat.request.structured import compile_source, make_vocabulary
from longcat.support.json_types import JsonObject
from longcat.support.worker import JobFailed, Limits, Pool, Work

_NUM_WORKERS = 2
_MAX_BYTES = 64 << 20  # for a grammar
_MAX_KNOWN = 1024


class GrammarTooHard(ValueError):
    """It took more time or memory than it may."""


class GrammarChecker:
    """Says whether a grammar compiles within the limits.

    Args:
        text: Engine.text_setup().
        timeout: processor time of a grammar [s].
    """

    def __init__(self, text: JsonObject, timeout: float):
        self._limits = Limits(cpu_seconds=timeout, memory_bytes=_MAX_BYTES, wall_seconds=10 * timeout + 10)
        self._pool = Pool(__name__, text, _NUM_WORKERS)
        self._known: OrderedDict[bytes, None] = OrderedDict()  # digests of what compiled

    def close(self) -> None:
        self._pool.close()

    async def check(self, source: str) -> None:
        """Returns when the grammar may be compiled here.

        Raises:
            GrammarTooHard: it takes too long, or too much memory.
            ValueError: it is malformed.
            JobFailed: the worker was killed.
        """
        data = source.encode()
        digest = hashlib.sha256(data).digest()
        if digest in self._known:
            self._known.move_to_end(digest)
            return
        try:
            error = await self._pool.acall(data, self._limits)
        except JobFailed as failure:
            if failure.reason == "killed":
                raise
            limit = f"{self._limits.cpu_seconds:g} s" if failure.reason == "time" else f"{_MAX_BYTES >> 20} MiB"
            kind = "longer" if failure.reason == "time" else "more"
            raise GrammarTooHard(f"the grammar takes {kind} than {limit} to compile: make it smaller") from None
        if error:
            raise ValueError(error.decode())
        self._known[digest] = None
        if len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)


def prepare(setup: JsonObject) -> Work:
    """The work of a worker. A job is a grammar; the answer says why it does not compile, and is empty if it does."""
    tokenizer = CheckpointText(**setup).tokenizer.library.to_str()
    vocabulary = make_vocabulary(tokenizer, setup["vocab_size"], setup["eos_token_ids"])
    compile_source('{"grammars": [{"lark_grammar": "start: \\"a\\""}]}', vocabulary)

    def work(job: bytes | bytearray) -> bytes:
        try:
            compile_source(job.decode(), vocabulary)
        except ValueError as error:
            return str(error).encode(errors="replace")
        return b""

    return work
