"""Calibration: the text that comes with longcat, and the second moments of a model's inputs over a text.

The four files of `texts/` were written for this purpose, stories and other prose, Chinese, code, and chats with tool
calls: 29 kB in 48 documents. At 0.3 tokens a byte they are about 9,000 tokens of a large vocabulary, more than the
widest matrix has columns (6,144 in LongCat-Flash-Lite). Tests and benchmarks measure on other texts. Lines of `---`
separate documents.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

import longcat._core as _core
from longcat.chat.template import ChatTemplate, encode_segments, tag_texts
from longcat.request.tokenizer import Tokenizer
from longcat.support.files import read_json

_SEQUENCE = 512  # tokens per sequence; only these attend to each other
_STEP = 4096  # tokens per step; each step reads all weights
_MIN_MEMORY = 2 << 30  # [bytes] for moments, assumed to be available
_PLAIN = ("english.txt", "chinese.txt", "code.txt")
_CHATS = "chats.json"
_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
# [tokens per byte of UTF-8] A tokenizer that needs more was not trained for such text, and neither was its model.
# longcat-tiny, of English stories, needs 0.34 in English, 0.64 in code and 0.99 in Chinese. One token for each Chinese
# character would be 0.33.
_MOST_TOKENS_PER_BYTE = 0.5


def check_text(folder: str | os.PathLike[str], token_ids: Sequence[int]) -> None:
    """Checks the token ids of a calibration text.

    Raises:
        ValueError: there is no token, or a token is not in the vocabulary.
    """
    vocab_size = read_json(Path(folder) / "config.json", "[config]")["vocab_size"]
    if bad := [id for id in token_ids if not 0 <= id < vocab_size]:
        raise ValueError(f"calibration has token {bad[0]}; expected ids from 0 to {vocab_size - 1}")
    if not token_ids:
        raise ValueError("calibration has no tokens; expected a text, or None")


class InputMoments:
    """X^T X of the inputs X of a checkpoint's matrices, over all tokens of a text.

    A quarter of the available memory holds moments: 300 MB for the inputs of each attention and its dense layer in
    LongCat-Flash-Lite. The text is read again for each group of matrices that fits.

    Args:
        folder: of the checkpoint, which the CPU runs whatever its size.
        token_ids: the text; see check_text.
        widths: tensor name -> input width, in the order in which the moments will be requested.
        log: called with a line before each pass over the text.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        token_ids: Sequence[int],
        widths: dict[str, int],
        log: Callable[[str], None] | None = None,
    ):
        self._token_ids = list(token_ids)
        self._observer = _core.InputObserver(os.fspath(folder), _STEP, _STEP // _SEQUENCE)
        known = set(self._observer.names())
        self._widths = {name: width for name, width in widths.items() if name in known}
        self._moments: dict[str, np.ndarray] = {}
        self._log = log or (lambda line: None)

    def of(self, name: str) -> np.ndarray | None:
        """[in_features, in_features] float32, or None for a matrix whose inputs are only some of the text's tokens."""
        if name not in self._widths:
            return None
        source = _source(name)
        if source not in self._moments:
            self._read(list(self._widths)[list(self._widths).index(name) :])
        return self._moments[source]

    def _read(self, names: list[str]) -> None:
        """Computes the moments of as many of `names` as fit, and drops the earlier ones."""
        self._moments = {}  # frees the old ones before the memory is counted
        free = max(_MIN_MEMORY, _core.available_memory() // 4)
        for name in names:
            source, size = _source(name), 4 * self._widths[name] ** 2
            if source in self._moments:
                continue
            if size > free and self._moments:
                break
            free -= size
            self._moments[source] = np.zeros((self._widths[name],) * 2, np.float32)
        self._log(f"reading {len(self._token_ids)} tokens for {len(self._moments)} inputs of {len(names)} matrices")
        for step in range(0, len(self._token_ids), _STEP):
            ids = self._token_ids[step : step + _STEP]
            sequences = [ids[begin : begin + _SEQUENCE] for begin in range(0, len(ids), _SEQUENCE)]
            self._observer.read(sequences, list(self._moments), self._add)

    def _add(self, name: str, x: np.ndarray) -> None:
        self._moments[name] += x.T @ x


def _source(name: str) -> str:
    """The matrix under which the moments of `name` are stored: up_proj has the input of gate_proj."""
    return name.replace(".up_proj.", ".gate_proj.")


# --- the text that comes with longcat ------------------------------------------------------------------------------


def default_token_ids(folder: str | os.PathLike[str]) -> list[int]:
    """The calibration text as token ids of a checkpoint, with its end-of-sequence token after each document.

    Documents of a kind for which the tokenizer was not trained are left out.

    Args:
        folder: of a checkpoint with a tokenizer. Chats are left out where it has no chat template.
    Raises:
        longcat.Error: the folder has no tokenizer, or its chat template does not render a chat.
    """
    folder = Path(folder)
    tokenizer = Tokenizer(folder)
    documents = [tokenizer.encode(text) for name in _PLAIN for text in _read(name).split("\n---\n")]
    if _has_chat_template(folder):
        documents += _chats(folder, tokenizer)
    end = read_json(folder / "config.json", "[config]").get("eos_token_id")
    end_ids = [end] if isinstance(end, int) else list(end or [])[:1]
    known = (ids for ids in documents if len(ids) <= _MOST_TOKENS_PER_BYTE * _num_bytes(tokenizer, ids))
    return [id for ids in known for id in (*ids, *end_ids)]


def _num_bytes(tokenizer: Tokenizer, ids: list[int]) -> int:
    return sum(len(tokenizer.token_bytes(id)) for id in ids)


def _has_chat_template(folder: Path) -> bool:
    if any((folder / name).exists() for name in _TEMPLATE_FILES):
        return True
    config = folder / "tokenizer_config.json"
    return config.exists() and "chat_template" in read_json(config, "[chat template]")


def _chats(folder: Path, tokenizer: Tokenizer) -> list[list[int]]:
    template = ChatTemplate.from_checkpoint(folder)
    tags = tag_texts(tokenizer.library)
    chats: list[dict[str, Any]] = json.loads(_read(_CHATS))
    return [
        encode_segments(
            tokenizer.library,
            template.render_segments(chat["messages"], tags=tags, tools=chat.get("tools"), add_generation_prompt=False),
        )
        for chat in chats
    ]


def _read(name: str) -> str:
    return (resources.files("longcat.checkpoint") / "texts" / name).read_text(encoding="utf-8")
