"""The running requests of one engine: adds them to the core, makes their masks, and ends them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import longcat._core as _core
from longcat._core import Error
from longcat.engine.text import CheckpointText

if TYPE_CHECKING:
    from longcat.engine.masks import MaskFiller


@dataclass
class RequestGroup:
    """The requests of one call of a client. The scheduler lets a group pass one that asks for far more tokens."""

    first: int = -1  # the core's id of the first request; -1: none is queued yet


class RequestTable:
    """Hands requests to the core and ends them there. Streams and requests share it, and need no engine.

    Args:
        core: the native engine.
        text: decodes the tokens of requests.
        vocab_size: number of bits in a token mask.
        eos_token_id: the model's end token.
    """

    def __init__(self, core: _core.Engine, text: CheckpointText, vocab_size: int, eos_token_id: int):
        self.text = text
        self.eos_token_id = eos_token_id
        self._core = core
        self._vocab_size = vocab_size
        self._lock = threading.Lock()  # of the fields below
        self._core_ids: dict[int | str, list[int]] = {}  # ids of the core by the request's, while it runs
        self._masks: MaskFiller | None = None
        self._closed = False

    def __len__(self) -> int:
        """Returns the number of running requests."""
        return len(self._core_ids)

    def check_open(self) -> None:
        """Raises longcat.Error when the engine is closed, or belongs to another process."""
        if self._closed:
            raise Error("[engine] this engine is closed")
        self._core.check_process()

    def add(
        self,
        prompt_token_ids: Sequence[int],
        params: _core.SamplingParams,
        token_masks: Sequence[Callable[[list[int]], object]],
        queue: _core.OutputQueue,
        group: RequestGroup,
        name: int | str | None = None,
    ) -> list[int]:
        """Hands a request to the core.

        Args:
            token_masks: a function for each completion; called only when params.constrained.
            queue: gets the tokens of all completions.
            name: the request's name for `abort`; default: the first id.
        Returns:
            The core's ids of its completions.
        Raises:
            longcat.QueueFullError: too many requests wait.
            ValueError: a request with that name runs.
        """
        num_completions = len(token_masks)
        with self._lock:
            if name is not None and name in self._core_ids:
                raise ValueError(f"request_id={name!r} is the name of a request that runs already")
            if not params.constrained:
                first = self._core.add_request(prompt_token_ids, params, num_completions, queue, group=group.first)
            else:
                masks = self.mask_filler()
                with masks.lock:
                    first = self._core.add_request(
                        prompt_token_ids, params, num_completions, queue, masks.queue, group.first
                    )
                    for core_id, token_mask in enumerate(token_masks, start=first):
                        masks.register(core_id, token_mask)
            if group.first < 0:
                group.first = first
            core_ids = list(range(first, first + num_completions))
            self._core_ids[first if name is None else name] = core_ids
        return core_ids

    def mask_filler(self) -> MaskFiller:
        """Returns the threads that make token masks; starts them at the first call. Call it with the lock held.

        Raises:
            longcat.Error: the engine is closed, so nothing would end the threads.
        """
        if self._closed:
            raise Error("[engine] this engine is closed")
        if self._masks is None:
            from longcat.engine.masks import MaskFiller

            self._masks = MaskFiller(self._core, self._vocab_size)
        return self._masks

    def forget(self, request_id: int | str) -> None:
        """Frees the name of a request that has ended."""
        # Without the lock: a stream's __del__ may call this on a thread that holds it, while garbage is collected.
        self._core_ids.pop(request_id, None)

    def abort(self, request_id: int | str) -> bool:
        """Ends all completions of a request. Returns False when no such request runs."""
        with self._lock:
            core_ids = list(self._core_ids.get(request_id, []))
        return any([self.abort_completion(core_id) for core_id in core_ids])

    def abort_completion(self, core_id: int) -> bool:
        """Ends one completion. Returns False when it has ended already."""
        try:
            return self._core.abort(core_id)
        except Error:  # closed, perhaps just now: it has ended
            return False

    def close(self) -> None:
        """Closes the core. Requests that still run end with an error."""
        self._closed = True
        self._core.close()
        with self._lock:  # a request may be on its way to the core
            masks = self._masks
        if masks is not None:
            masks.queue.close()

    def __del__(self) -> None:  # not of Engine: a stream outlives an engine that nothing else refers to
        self.close()
