"""Token masks: calls, on threads of its own, the functions that say which tokens may follow.

The core asks for a mask after each token of a constrained request. Only that request waits for the mask.
"""

from __future__ import annotations

import queue
import threading
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import longcat._core as _core
from longcat._core import Error

if TYPE_CHECKING:
    import numpy as np

_NUM_THREADS = 2


@dataclass
class Constrained:
    """A sequence whose tokens are masked."""

    core_id: int
    token_mask: Callable[[list[int]], Any]
    token_ids: list[int] = field(default_factory=list)
    workers: int = 0  # threads at its masks; two when it asks for the next before the first is back
    ended: bool = False


class MaskFiller:
    """Fills masks for one core. Threads start with the first constrained request and end when the core closes."""

    def __init__(self, core: _core.Engine, vocab_size: int):
        self.queue = _core.OutputQueue()
        self.lock = threading.Lock()  # held while a request is added, so that it is known before its first mask
        self._core = core
        self._vocab_size = vocab_size
        self._requests: dict[int, Constrained] = {}
        self._jobs: queue.SimpleQueue[Constrained | None] = queue.SimpleQueue()
        for target in [self._dispatch, *[self._work] * _NUM_THREADS]:
            threading.Thread(target=target, name="longcat-masks", daemon=True).start()

    def register(self, core_id: int, token_mask: Callable[[list[int]], object]) -> None:
        """Registers the function that makes a sequence's masks. Call it with the lock held."""
        self._requests[core_id] = Constrained(core_id, token_mask)

    def _dispatch(self) -> None:
        arrived: deque[_core.StepOutput] = deque()
        while self.queue.wait(arrived):
            while arrived:
                step = arrived.popleft()
                with self.lock:
                    request = self._requests.get(step.request_id)
                    if request is None:
                        continue
                    if step.finish_reason is not None:
                        request.ended = True
                        del self._requests[step.request_id]
                        for _ in range(request.workers):  # they may hang for ever: those threads are given up
                            threading.Thread(target=self._work, name="longcat-masks", daemon=True).start()
                        continue
                if step.token_id >= 0:
                    request.token_ids.append(step.token_id)
                self._jobs.put(request)
        for _ in range(_NUM_THREADS):
            self._jobs.put(None)

    def _work(self) -> None:
        while (request := self._jobs.get()) is not None:
            with self.lock:
                if request.ended:
                    continue
                request.workers += 1
            try:
                self._fill(request)
            except Error:  # the core is closed
                return
            with self.lock:
                request.workers -= 1
                if request.ended:  # another thread took this one's place
                    return

    def _fill(self, request: Constrained) -> None:
        try:
            mask = request.token_mask(list(request.token_ids))
            words = [] if mask is None else mask_words(mask, self._vocab_size)
        except Exception as error:
            if request.ended:
                return
            message = f"the token_mask of request {request.core_id} failed: {error!r}"
            try:
                warnings.warn(f"[mask] {message}", stacklevel=2)
            finally:  # a warning may be an error
                self._core.fail(request.core_id, message)
            return
        self._core.set_mask(request.core_id, len(request.token_ids), words)


def mask_words(mask: np.ndarray, vocab_size: int) -> list[int]:
    """A token mask as 32-bit words, bit i of word w for id 32 w + i.

    Args:
        mask: [vocab_size] bools, or [ceil(vocab_size / 32)] integers that are words already.
    Raises:
        ValueError: another shape or type.
    """
    import numpy as np

    array, words = np.asarray(mask), (vocab_size + 31) // 32
    if array.dtype == bool and array.shape == (vocab_size,):
        bits = np.zeros(words * 32, np.uint8)
        bits[:vocab_size] = array
        return np.packbits(bits, bitorder="little").view("<u4").tolist()
    if array.dtype.kind in "iu" and array.shape == (words,):
        unsigned: list[int] = (array.astype(np.int64) & 0xFFFFFFFF).tolist()
        return unsigned
    raise ValueError(f"a mask of {array.dtype} {array.shape}: expected {vocab_size} bools or {words} words of 32 bits")
