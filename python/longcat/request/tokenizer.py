"""Text <-> token ids, by the checkpoint's own tokenizer.json (byte-level BPE)."""

from __future__ import annotations

import codecs
import functools
import os
from collections.abc import Iterable

from longcat._core import Error
from longcat.support.files import read_bytes

_MAX_BYTES = 512 << 20


@functools.cache
def _byte_of_char() -> dict[str, int]:
    """Returns {character of a byte-level token: its byte}.

    Byte-level BPE writes printable Latin-1 bytes as themselves and the other 68 as the characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


class Tokenizer:
    """A thin layer over the `tokenizers` library.

    Args:
        path: a tokenizer.json, or a folder that holds one.
    Raises:
        longcat.Error: the file is missing or is not a tokenizer.
    """

    def __init__(self, path: str | os.PathLike[str]):
        import tokenizers

        path = os.fspath(path)
        if os.path.isdir(path):
            path = os.path.join(path, "tokenizer.json")
        if not os.path.exists(path):
            raise Error(f"[tokenizer] {path} is missing: add the checkpoint's tokenizer.json, or pass token ids")
        content = read_bytes(path, "[tokenizer]", _MAX_BYTES)
        try:
            self.library = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises bare Exception
            raise Error(f"[tokenizer] {path} is not a tokenizer.json: {str(error).splitlines()[0]}") from None
        added = self.library.get_added_tokens_decoder()
        self._added = {id: token.content.encode() for id, token in added.items()}
        self.special_ids = frozenset(id for id, token in added.items() if token.special)

    @property
    def vocab_size(self) -> int:
        """Returns the number of ids, added tokens included."""
        return self.library.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of `text`, without added tokens. Special tokens in the text become their ids."""
        try:
            # `encode` gives the same ids for one text, but holds the GIL all the time.
            return self.library.encode_batch_fast([text], add_special_tokens=False)[0].ids
        except TypeError:  # what the library says of text that is no UTF-8
            raise ValueError(f"{text[:40]!r} cannot be encoded: expected text without lone surrogates") from None

    def token_bytes(self, token_id: int) -> bytes:
        """Returns the bytes of a token; b"" for an id without a token."""
        if token_id in self._added:
            return self._added[token_id]
        token = self.library.id_to_token(token_id)
        if token is None:
            return b""
        byte_of_char = _byte_of_char()
        return b"".join(bytes([byte_of_char[char]]) if char in byte_of_char else char.encode() for char in token)

    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Returns the text of `token_ids`. Bytes that are not UTF-8 become U+FFFD."""
        stream = StreamDecoder(self, skip_special_tokens)
        return stream.push(token_ids) + stream.finish()


class StreamDecoder:
    """Decodes token by token and never splits a character: it holds a partial one back until it is complete."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True):
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset[int]()
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_ids: Iterable[int]) -> str:
        """Returns the characters that `token_ids` complete."""
        return "".join(
            self._utf8.decode(self._tokenizer.token_bytes(id)) for id in token_ids if id not in self._skipped
        )

    def finish(self) -> str:
        """Returns the rest at the end: U+FFFD for a character that is not complete."""
        return self._utf8.decode(b"", final=True)
