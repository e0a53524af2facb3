"""Completions of a model, well formed and broken, by seed."""

from __future__ import annotations

import random

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "func_add",
            "parameters": {
                "type": "object",
                "properties": {"x1": {"type": "number"}, "x2": {"type": "number"}},
                "required": ["x1"],
            },
        },
    },
    {
        "name": "find",
        "parameters": {
            "type": "object",
            "properties": {
                "q": {"type": "string"},
                "n": {"type": "integer"},
                "f": {"type": "object"},
                "ok": {"type": "boolean"},
            },
        },
    },
]

TAGS = [f"<{slash}longcat_{name}>" for name in ("think", "tool_call", "arg_key", "arg_value") for slash in ("", "/")]
_TEXTS = [
    "",
    " ",
    "\n",
    "Hello there.",
    " a  b ",
    "I'll add.\n",
    "é 😀 漢字",
    "\u3000wide\u3000",
    "a < b > c",
    "<b>",
    "</",
    "<longcat_",
    "<longcat_tool_",
    "</longcat_arg_value",
    "longcat_tool_call>",
    'say "hi" \\ \t',
    "\x00\x1f\u2028",
    "1\r\n2",
]
_NAMES = ["func_add", "find", "find ", " func_add", "functions.find", "functions.", "unknown", "näme", "", "\n", "f(x)"]
_KEYS = ["x1", "x2", "q", "q", "n", "f", "ok", "zz", " q ", "", "ключ", '"', "\\", "q\n"]
_VALUES = [
    "125679",
    "2.5",
    "123",
    "true",
    "null",
    '{"a": [1, null]}',
    '{"k": [1, "é"]}',
    "three",
    "[1]",
    " abc ",
    "",
    "\n\nab\ncd\n",
    "NaN",
    "1e999",
    '"quoted"',
    '"\\ud800"',
    "{'a': 1}",
    "[" * 150 + "]" * 150,
    "9" * 5000,
    "日本 語",
    'a"b\\c\td',
    "  ",
    "<x>",
    "-0",
    "01",
]
_BODIES = [
    '{"name": "func_add", "arguments": {"x1": 1, "x2": 2}}',
    '\n{"name": "find", "arguments": "{\\"q\\": \\"é\\"}"}\n',
    '{"name": "functions.find"}',
    '{"name": 3}',
    "{broken",
    '{"arguments": {}}',
    'func_add({"x1": 1, "x2": [2]})',
    "functions.find({q: 'it\\'s \"x\"', ok: true, n: 3,})",
    "find()",
    "find(q)",
    "find({q: 1}",
    "({})",
    " find ( {} ) ; ",
    'find\n<longcat_arg_key>{"q": "x", "n": 3}',
    'func_add\n<longcat_arg_key>{"x1": 1}</longcat_arg_key>\n',
    "find\n<longcat_arg_key>{q: 1}",
    "func_add\n<longcat_arg_key>[1]",
]


def random_response(seed: int) -> str:
    """A completion: think block or not, text, calls; two thirds of them damaged somewhere."""
    rng = random.Random(seed)
    parts = [rng.choice(["", "\n", "  \n"])]
    if rng.random() < 0.3:
        parts += ["<longcat_think>", rng.choice(_TEXTS), rng.choice(_TEXTS), "</longcat_think>"]
    parts += [rng.choice(_TEXTS) for _ in range(rng.randrange(3))]
    for _ in range(rng.randrange(4)):
        parts += _call(rng)
        parts.append(rng.choice(["\n", "", "\n", rng.choice(_TEXTS)]))
    for _ in range(rng.choice([0, 0, 1, 1, 2, 4])):
        _damage(rng, parts)
    return "".join(parts)


def well_formed_response(seed: int) -> str:
    """A completion as the model is taught to give it, with any names, keys and values: every tag has its partner."""
    rng = random.Random(seed)
    parts = []
    if rng.random() < 0.3:
        parts += ["\n<longcat_think>\n", rng.choice(_TEXTS[:6]), "\n</longcat_think>\n"]
    parts += [rng.choice(_TEXTS[:10]) for _ in range(rng.randrange(3))]
    for _ in range(rng.randrange(4)):
        parts += _pair_call(rng, [name for name in _NAMES if "(" not in name and "functions" not in name])
        parts.append(rng.choice(["\n", ""]))
    return "".join(parts)


def random_pieces(text: str, seed: int) -> list[str]:
    """`text` in pieces of random lengths, some of them empty."""
    rng = random.Random(seed)
    cuts = sorted(rng.randrange(len(text) + 1) for _ in range(rng.randrange(1, 12)))
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def _call(rng: random.Random) -> list[str]:
    if rng.random() < 0.25:
        return ["<longcat_tool_call>", rng.choice(_BODIES), "</longcat_tool_call>"]
    return _pair_call(rng, _NAMES)


def _pair_call(rng: random.Random, names: list[str]) -> list[str]:
    parts = ["<longcat_tool_call>", rng.choice(names), rng.choice(["\n", "\n", "\n", "", " "])]
    for _ in range(rng.randrange(5)):
        parts += ["<longcat_arg_key>", rng.choice(_KEYS), "</longcat_arg_key>", rng.choice(["\n", "", " \n "])]
        parts += ["<longcat_arg_value>", rng.choice(_VALUES), "</longcat_arg_value>", rng.choice(["\n", "\n", ""])]
    return [*parts, "</longcat_tool_call>"]


def _damage(rng: random.Random, parts: list[str]) -> None:
    """Something missing, doubled, out of place, or cut off."""
    if not parts:
        return
    at = rng.randrange(len(parts))
    kind = rng.randrange(6)
    if kind == 0:
        del parts[at]
    elif kind == 1:
        parts.insert(at, parts[at])
    elif kind == 2:
        parts.insert(at, rng.choice(TAGS))
    elif kind == 3:
        parts.insert(at, rng.choice(_TEXTS))
    elif kind == 4:
        other = rng.randrange(len(parts))
        parts[at], parts[other] = parts[other], parts[at]
    else:
        parts[at] = parts[at][: rng.randrange(len(parts[at]) + 1)]
        del parts[at + 1 :]
