"""Completions held to a form: a JSON schema, a regular expression, a choice or a grammar, by llguidance.

A grammar is compiled once and then says, token by token, which ids may follow. The limits below bound time and memory.
A grammar beyond them is refused; a request beyond them ends with an error.
"""

from __future__ import annotations

import dataclasses
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from longcat._core import Error
from longcat.request.patterns import PatternError, whole
from longcat.request.schema.branches import ANYTHING
from longcat.request.schema.reader import SchemaReader
from longcat.request.schema.writer import SchemaWriter
from longcat.support.json_types import Json
from longcat.support.names import install_command, unknown_name
from longcat.support.text import printable

if TYPE_CHECKING:
    import numpy as np
    from llguidance import LLMatcher, LLTokenizer

    from longcat.request.tokenizer import Tokenizer

MAX_GRAMMAR_CHARS = 256 * 1024
# 64 MiB a grammar: a state of the lexer takes up to 2 kB. Fuel is llguidance's measure of work: about 15 ms a step.
_LIMITS = {
    "max_lexer_states": 32_000,
    "max_grammar_size": 500_000,
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "verbose_errors": False,
}
# White space as json.dumps writes it. If it were free, a model could write white space for ever.
JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_MAX_CACHED_BYTES = 256 << 20
# Measured: a grammar of 240 kB of source takes about 80 MB. The lexer of even a small grammar grows with its use.
_GRAMMAR_BYTES, _GRAMMAR_BYTES_PER_CHAR = 8 << 20, 350
_MAX_SHOWN = 80  # characters of what the caller wrote
_TOO_LARGE = ("too large", "too many", "too big", "limit", "fuel", "exceed")  # of the compiler's errors
_QUOTED = re.compile(r'"[^"]*"')
_PLACE = re.compile(r"at (\d+)\((\d+)\)")
_NAME = re.compile(r'(?:name|rule): "([^"]*)"')


@dataclass(frozen=True)
class StructuredOutputs:
    """The form of a completion, one of:

    Args:
        json: a JSON schema, as an object or its text.
        json_object: any JSON object.
        regex: a regular expression for the whole completion (Rust's syntax).
        choice: texts, of which the completion is one.
        grammar: a Lark grammar with the rule `start`, in llguidance's dialect.
    """

    json: Mapping[str, Json] | str | None = None
    json_object: bool = False
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None

    @classmethod
    def of(cls, value: StructuredOutputs | Mapping[str, Json]) -> StructuredOutputs:
        """Makes the form from an object or a dict.

        Raises:
            TypeError: a name is unknown, or the value has another type.
            ValueError: not exactly one form is given.
        """
        if isinstance(value, Mapping):
            known = [f.name for f in dataclasses.fields(cls)]
            for name in value:
                if name not in known:
                    raise unknown_name("structured_outputs", name, known)
            value = cls(**value)
        if not isinstance(value, cls):
            raise TypeError(f"structured_outputs is a {type(value).__name__}: expected StructuredOutputs or a dict")
        given = [f.name for f in dataclasses.fields(StructuredOutputs) if getattr(value, f.name) not in (None, False)]
        if len(given) != 1:
            raise ValueError(
                f"structured_outputs has {' and '.join(given) or 'no form'}: "
                "expected one of json, json_object, regex, choice, grammar"
            )
        return value

    def source(self) -> str:
        """Returns the grammar in llguidance's form.

        Raises:
            TypeError, ValueError: the value is not of the form's type, or too long.
        """
        from llguidance import LLMatcher, grammar_from

        if self.regex is not None:
            return LLMatcher.grammar_from_regex(_text("regex", self.regex))
        if self.grammar is not None:
            return LLMatcher.grammar_from_lark(_text("grammar", self.grammar))
        if self.choice is not None:
            choices = [] if isinstance(self.choice, str) else list(self.choice)
            if not choices or not all(isinstance(text, str) and text for text in choices):
                raise ValueError(f"[choice] found {str(self.choice)[:100]}; expected a list of non-empty texts")
            return grammar_from("choice", _text("choice", json.dumps(choices)))
        if self.json_object:
            return json_source({"type": "object"})
        return schema_source(self._schema())

    def _schema(self) -> Json:
        if not isinstance(self.json, str):
            try:
                written = json.dumps(self.json, allow_nan=False)
            except (TypeError, ValueError, RecursionError):
                raise ValueError("[schema] found what JSON cannot say; expected a JSON schema.") from None
            _text("json", written)
            return self.json
        text = _text("json", self.json)
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            where = f"from character {error.pos} on"
            raise ValueError(f"[schema] found text that is no JSON {where}; expected a JSON schema.") from None
        except RecursionError:
            raise ValueError("[schema] found text nested too deep; expected a JSON schema.") from None


@dataclass(frozen=True)
class WrittenGrammar(StructuredOutputs):
    """A form whose grammar is written: `grammar` is what `source()` of another form returned."""

    def source(self) -> str:
        return self.grammar or ""


def schema_source(schema: object) -> str:
    """Returns the grammar of the values that fit a JSON schema, in llguidance's form.

    Raises:
        ValueError: the schema is malformed, no value fits it, or a word of it cannot be enforced.
    """
    try:
        reader = SchemaReader(schema)
        branches = () if reader.root is None else reader.branches(reader.root)
        if not branches:
            raise ValueError("[schema] found a schema that no value fits; expected one that allows some. Loosen it.")
        return json_source({} if reader.root == ANYTHING else SchemaWriter(reader).document(branches))
    except RecursionError:
        raise ValueError("[schema] found one nested too deep; expected fewer levels. Make it flatter.") from None


def json_source(schema: dict[str, object]) -> str:
    """Compiles a schema that SchemaWriter wrote."""
    from llguidance import LLMatcher

    return LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=JSON_STYLE)  # type: ignore[arg-type]


class Grammar:
    """A compiled grammar, which any number of completions may follow."""

    def __init__(self, matcher: LLMatcher, vocab_size: int):
        self._matcher = matcher
        self._num_words = (vocab_size + 31) // 32

    def new_mask(self) -> Callable[[list[int]], np.ndarray]:
        """Returns a `token_mask` for one completion."""
        return _Follower(self._matcher.deep_copy(), self._num_words)


class _Follower:
    """The place of one completion in its grammar. It makes the completion's token masks."""

    def __init__(self, matcher: LLMatcher, num_words: int):
        self._matcher = matcher
        self._num_words = num_words  # of a mask; llguidance appends one that is not used
        self._num_taken = 0

    def __call__(self, token_ids: list[int]) -> np.ndarray:
        """Returns [ceil(vocab_size / 32)] uint32: the ids that may follow `token_ids`, the completion so far."""
        import numpy as np

        if len(token_ids) < self._num_taken:
            self._matcher.rollback(self._num_taken - len(token_ids))
        elif len(token_ids) > self._num_taken:
            self._matcher.consume_tokens(token_ids[self._num_taken :])
        self._num_taken = len(token_ids)
        mask = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            raise ValueError("[grammar] found no token that may follow; expected a grammar that allows one. Loosen it.")
        return np.frombuffer(mask, np.uint32, count=self._num_words)


class GrammarCompiler:
    """Compiles grammars for one tokenizer, and keeps the last ones up to a number of bytes. Any thread may use it.

    Args:
        tokenizer: returns the tokenizer; called for the first grammar.
        vocab_size: number of ids of the model.
        eos_token_ids: the ids that end a completion.
    """

    def __init__(self, tokenizer: Callable[[], Tokenizer], vocab_size: int, eos_token_ids: Sequence[int]):
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = list(eos_token_ids)
        self._lock = threading.Lock()  # of the fields below
        self._vocabulary: LLTokenizer | None = None
        self._cache: OrderedDict[str, Grammar] = OrderedDict()

    def compile(self, form: StructuredOutputs) -> Grammar:
        """Compiles the grammar of `form`. That takes a moment without the GIL, so do not call it on an event loop.

        Raises:
            ValueError: the form is malformed or too large; the message says why.
            longcat.Error: llguidance is not installed, or the checkpoint has no tokenizer.
        """
        try:
            import llguidance  # noqa: F401
        except ImportError as error:
            raise Error(f"[structured outputs] llguidance is needed ({error}): {install_command('server')}") from None

        source = form.source()
        with self._lock:
            if source in self._cache:
                self._cache.move_to_end(source)
                return self._cache[source]
        grammar = Grammar(compile_source(source, self._vocab()), self._vocab_size)
        with self._lock:
            self._cache[source] = grammar
            while self._cached_bytes() > _MAX_CACHED_BYTES:
                self._cache.popitem(last=False)
        return grammar

    def _cached_bytes(self) -> int:
        """Returns the memory of the kept grammars, estimated from their sources."""
        return sum(_GRAMMAR_BYTES + _GRAMMAR_BYTES_PER_CHAR * len(source) for source in self._cache)

    def _vocab(self) -> LLTokenizer:
        with self._lock:
            if self._vocabulary is None:
                text = self._tokenizer().library.to_str()
                self._vocabulary = make_vocabulary(text, self._vocab_size, self._eos_token_ids)
            return self._vocabulary


def make_vocabulary(tokenizer_text: str, vocab_size: int, eos_token_ids: Sequence[int]) -> LLTokenizer:
    """Makes llguidance's tokenizer from a tokenizer.json and the ids that end a completion."""
    from llguidance import LLTokenizer

    return LLTokenizer(tokenizer_text, n_vocab=vocab_size, eos_token=list(eos_token_ids))


def compile_source(source: str, vocabulary: LLTokenizer) -> LLMatcher:
    """Compiles a grammar in llguidance's form.

    Raises:
        ValueError: the grammar is malformed or too large.
    """
    from llguidance import LLMatcher, LLParserLimits

    matcher = LLMatcher(vocabulary, source, log_level=0, limits=LLParserLimits(**_LIMITS))  # type: ignore[arg-type]
    if matcher.is_error():
        raise ValueError(_compile_error(source, matcher.get_error()))
    return matcher


def _compile_error(source: str, reason: str) -> str:
    """Rewords a compiler's message for the caller: the grammar that the compiler read is not the caller's."""
    form = json.loads(source)["grammars"][0] if source.startswith("{") else {}
    reason = reason.partition("\n")[0]  # the lines after it are the grammar's
    if any(word in _QUOTED.sub("", reason) for word in _TOO_LARGE):
        return "[grammar] found one beyond the limits of its compiler; expected a smaller one. Make it smaller."
    if form.get("name") == "regex":
        return f"[regex] found {_regex_fault(form['lark_grammar'])}; expected Rust's syntax. Correct it."
    if form.get("json_schema") is not None or form.get("name") == "main" or "<longcat_tool_call>" in source:
        if "disjoint" in reason:
            return (
                '[schema] found "patternProperties" whose expressions overlap; expected names that match one of them. '
                "Change them."
            )
        if "nsatisfiable" in reason:
            return "[schema] found a schema that no value fits; expected one that allows some. Loosen it."
        return "[schema] found one that cannot be enforced; expected the keywords of docs/serving.md. Make it simpler."
    if form.get("name") == "choice" or "start" not in source:
        return "[grammar] found no rule `start`; expected one. Add it."
    place = _PLACE.search(reason)
    where = f" at line {place[1]}, column {place[2]}" if place else ""
    return f"[grammar] found {_lark_fault(reason)}{where}; expected Lark in llguidance's dialect. Correct it."


def _regex_fault(lark: str) -> str:
    """Extracts the fault of a regular expression from the compiler's message about `start: /.../`."""
    pattern = lark.removeprefix("start: /").removesuffix("/")
    try:
        whole(pattern)
    except PatternError as error:
        return f"{error} in {printable(pattern, _MAX_SHOWN)}"
    return f"an expression that is not supported: {printable(pattern, _MAX_SHOWN)}"


def _lark_fault(reason: str) -> str:
    name = _NAME.search(reason)
    for words, fault in (
        ("unknown name", f"a name without a rule{f': {printable(name[1], _MAX_SHOWN)}' if name else ''}"),
        ("duplicate rule", f"a rule twice{f': {printable(name[1], _MAX_SHOWN)}' if name else ''}"),
        ("no start rule", "no rule `start`"),
        ("invalid regex", "a regular expression that is not supported"),
    ):
        if words in reason:
            return fault
    return "what is no grammar"


def _text(name: str, text: object) -> str:
    if not isinstance(text, str):
        raise TypeError(f"{name} is a {type(text).__name__}: expected a text")
    if len(text) > MAX_GRAMMAR_CHARS:
        raise ValueError(f"{name} has {len(text)} characters: expected at most {MAX_GRAMMAR_CHARS}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} has half of a surrogate pair in it: expected Unicode") from None
    return text
