"""Responses that later requests go on from, within a bound of bytes, and apart for each API key."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import orjson

from longcat.server.http.errors import ApiError, to_json
from longcat.support.json_types import JsonObject

_ENTRY_BYTES, _ITEM_BYTES = 1024, 256  # of what is kept besides the texts, about


@dataclass(frozen=True)
class _Entry:
    """What is kept of a response, as JSON."""

    given: bytes  # its own input, a list of items
    output: bytes  # a list of items
    response: bytes
    previous: str | None
    item_ids: tuple[str, ...]  # of the output

    @property
    def num_bytes(self) -> int:
        texts = len(self.given) + len(self.output) + len(self.response)
        return texts + _ENTRY_BYTES + _ITEM_BYTES * len(self.item_ids)


class ResponseStore:
    """The last responses. Those that were used longest ago go first.

    An entry has its own input and output alone. A conversation is the chain of entries that it goes on from, and ends
    where one of them is gone.

    Args:
        max_bytes: of all entries.
    """

    def __init__(self, max_bytes: int):
        self._max_bytes = max_bytes
        self._entries: OrderedDict[tuple[bytes, str], _Entry] = OrderedDict()  # by caller and id of the response
        self._homes: dict[tuple[bytes, str], str] = {}  # by caller and id of an item: the response that it is in
        self.num_bytes = 0
        self._lock = threading.Lock()  # a long response is kept by a thread

    def add(self, caller: bytes, given: list[JsonObject], response: JsonObject) -> None:
        """Keeps a response that has ended.

        Args:
            caller: the digest of the client's API key.
            given: the input, without that of earlier responses.
        """
        ids = tuple(str(item["id"]) for item in response["output"])
        texts = (to_json(given), to_json(response["output"]), to_json(response))
        entry = _Entry(*texts, response["previous_response_id"], ids)
        if entry.num_bytes > self._max_bytes:
            return
        with self._lock:
            self._entries[caller, response["id"]] = entry
            self._homes |= {(caller, id): response["id"] for id in ids}
            self.num_bytes += entry.num_bytes
            while self.num_bytes > self._max_bytes:
                self._drop(next(iter(self._entries)))

    def response(self, caller: bytes, id: str) -> bytes:
        """A response as JSON.

        Raises:
            ApiError: 404, there is none of this id for this caller.
        """
        return self._entry(caller, id).response

    def given(self, caller: bytes, id: str) -> bytes:
        """A response's own input as JSON, a list of items.

        Raises:
            ApiError: 404, there is none of this id for this caller.
        """
        return self._entry(caller, id).given

    def conversation(self, caller: bytes, id: str | None) -> list[bytes]:
        """Lists of items as JSON, that together are all up to the end of a response.

        Raises:
            ApiError: 404, the response, or one that it goes on from, is gone.
        """
        chain: list[tuple[str, _Entry]] = []
        texts: list[bytes] = []
        with self._lock:
            while id is not None:
                entry = self._entry(caller, id)
                chain.append((id, entry))
                id = entry.previous
            for one, entry in reversed(chain):
                self._entries.move_to_end((caller, one))
                texts += [entry.given, entry.output]
        return texts

    def item(self, caller: bytes, id: str) -> JsonObject:
        """An item of the output of a response.

        Raises:
            ApiError: 404, there is none of this id for this caller.
        """
        home = self._homes.get((caller, id))
        if home is None:
            raise _not_found("item", id, "input")
        items: list[JsonObject] = orjson.loads(self._entry(caller, home).output)
        return next(item for item in items if item["id"] == id)

    def delete(self, caller: bytes, id: str) -> None:
        """Forgets a response.

        Raises:
            ApiError: 404, there is none of this id for this caller.
        """
        with self._lock:
            self._entry(caller, id)
            self._drop((caller, id))

    def _entry(self, caller: bytes, id: str) -> _Entry:
        entry = self._entries.get((caller, id))
        if entry is None:
            raise _not_found("response", id, "previous_response_id")
        return entry

    def _drop(self, key: tuple[bytes, str]) -> None:
        entry = self._entries.pop(key)
        self.num_bytes -= entry.num_bytes
        for id in entry.item_ids:
            self._homes.pop((key[0], id), None)


def _not_found(what: str, id: str, param: str) -> ApiError:
    return ApiError(
        404,
        f'[request] {param} names the {what} "{id[:64]}", which is not kept; expected a recent one of this API key. '
        "Send the whole conversation as input.",
        param=param,
        code=f"{what}_not_found",
    )
