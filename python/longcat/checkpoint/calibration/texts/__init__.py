"""The calibration text that comes with longcat: stories and other prose, Chinese, code, chats with tool calls.

The four files beside this one were written for this purpose: 29 kB in 48 documents. At 0.3 tokens a byte they are about
9,000 tokens of a large vocabulary, more than the widest matrix has columns (6,144 in LongCat-Flash-Lite). Tests and
benchmarks measure on other texts. Lines of `---` separate documents.
"""

from __future__ import annotations

import json
import os
from importlib import resources
from pathlib import Path
from typing import Any

from longcat.chat.template import ChatTemplate, encode_segments, tag_texts
from longcat.request.tokenizer import Tokenizer
from longcat.support.files import read_json

_PLAIN = ("english.txt", "chinese.txt", "code.txt")
_CHATS = "chats.json"
_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
# [tokens per byte of UTF-8] A tokenizer that needs more was not trained for such text, and neither was its model.
# longcat-tiny, of English stories, needs 0.34 in English, 0.64 in code and 0.99 in Chinese. One token for each Chinese
# character would be 0.33.
_MOST_TOKENS_PER_BYTE = 0.5


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
    return (resources.files(__name__) / name).read_text(encoding="utf-8")
