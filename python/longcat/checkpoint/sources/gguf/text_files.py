"""tokenizer.json, the chat template and defaults of sampling from the metadata of a GGUF file."""

from __future__ import annotations

import json
from collections.abc import Mapping

from longcat.checkpoint.sources.gguf.header import Part, integer, integers, number, quoted, strings, text
from longcat.support.json_types import Json, JsonObject

_CONTROL, _USER_DEFINED = 3, 4  # types of tokens that are found in the text before it is split
_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}  # our name -> that of the metadata
# Text is split by each pattern in turn, then into bytes. None: by the library's own pattern of GPT-2.
_WORDS = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PATTERNS: dict[str, tuple[str, ...] | None] = {
    "gpt-2": None,
    "qwen2": (_WORDS,),
    "longcat": (_WORDS, " ?[！-／：-～‘-‟　-。《》「」【】]+", "[一-龥ࠀ-一가-퟿]+"),
}
# Key of general.sampling -> field of generation_config.json.
_SAMPLING = {"temp": "temperature", "top_p": "top_p", "min_p": "min_p", "penalty_repeat": "repetition_penalty"}


def text_files(part: Part) -> dict[str, bytes]:
    """File name -> contents, of the files that the metadata give.

    Raises:
        longcat.Error: the vocabulary or its merges are impossible, or text is split in a way that is not known.
    """
    files: dict[str, bytes] = {}
    if "tokenizer.ggml.tokens" in part.metadata:
        tokens = strings(part, "tokenizer.ggml.tokens")
        files["tokenizer.json"] = _as_json(_tokenizer(part, tokens))
        files["tokenizer_config.json"] = _as_json(_tokenizer_config(part, tokens))
    if "tokenizer.chat_template" in part.metadata:
        files["chat_template.jinja"] = text(part, "tokenizer.chat_template").encode()
    if sampling := _sampling(part):
        files["generation_config.json"] = _as_json(sampling)
    return files


def _as_json(value: Mapping[str, Json]) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode()


def _tokenizer(part: Part, tokens: list[str]) -> JsonObject:
    model, split = text(part, "tokenizer.ggml.model"), text(part, "tokenizer.ggml.pre", "gpt-2")
    if model != "gpt2":
        part.fail(f"has tokenizer.ggml.model {quoted(model)}; expected gpt2, which is byte-level BPE")
    if split not in _PATTERNS:
        part.fail(f"has tokenizer.ggml.pre {quoted(split)}; expected one of {', '.join(_PATTERNS)}")
    ids = {token: id for id, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        twice = next(token for id, token in enumerate(tokens) if ids[token] != id)
        part.fail(f"has token {quoted(twice)} twice in tokenizer.ggml.tokens; expected each once")
    types = integers(part, "tokenizer.ggml.token_type") or [1] * len(tokens)
    if len(types) != len(tokens):
        part.fail(f"has tokenizer.ggml.token_type of {len(types)} elements; expected {len(tokens)}, as tokens")
    merges = strings(part, "tokenizer.ggml.merges")
    for merge in merges:
        left, _, right = merge.partition(" ")
        if not (left in ids and right in ids and left + right in ids):
            part.fail(f"has merge {quoted(merge)}; expected two tokens that make a third")
    added: list[Json] = [
        {
            **{"id": id, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False},
            "special": kind == _CONTROL,
        }
        for id, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    bytes_of_text: JsonObject = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": _splitter(_PATTERNS[split], bytes_of_text),
        "post_processor": None,
        "decoder": bytes_of_text | {"use_regex": True},
        "model": {
            **{"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None},
            **{"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False},
            "vocab": dict(ids),
            "merges": list(merges),
        },
    }


def _splitter(patterns: tuple[str, ...] | None, bytes_of_text: JsonObject) -> JsonObject:
    if patterns is None:
        return bytes_of_text | {"use_regex": True}
    splits: list[Json] = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in patterns
    ]
    return {"type": "Sequence", "pretokenizers": [*splits, bytes_of_text | {"use_regex": False}]}


def _tokenizer_config(part: Part, tokens: list[str]) -> JsonObject:
    config: JsonObject = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False, "add_eos_token": False}
    for name, key in _SPECIAL.items():
        if f"tokenizer.ggml.{key}_token_id" in part.metadata:
            config[f"{name}_token"] = tokens[integer(part, f"tokenizer.ggml.{key}_token_id", 0, len(tokens) - 1)]
    return config


def _sampling(part: Part) -> JsonObject:
    found: JsonObject = {
        field: number(part, f"general.sampling.{key}")
        for key, field in _SAMPLING.items()
        if f"general.sampling.{key}" in part.metadata
    }
    if "general.sampling.top_k" in part.metadata:
        found["top_k"] = integer(part, "general.sampling.top_k", 0, 1 << 31)
    return found
