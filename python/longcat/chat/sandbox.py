"""Renders chat templates within a worker: a template comes with a checkpoint, and is a program.

jinja2's immutable sandbox keeps a template from the interpreter. The limits of the worker (`support/worker.py`) bound
its time and memory. The text is what Hugging Face's environment gives.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError, TemplateRuntimeError, TemplateSyntaxError
from jinja2.runtime import Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from longcat.support.worker import Work

MAX_SOURCE_CHARS = 1 << 16
MAX_OUTPUT_CHARS = 1 << 20
FAILED, RENDERED = b"!", b"="  # the first byte of an answer, before a message or the text
_MAX_SHOWN_CHARS = 200  # of a template's error
_MAX_TEMPLATES = 8  # that a worker keeps compiled
_NOT_ASCII = re.compile("[\x80-\U000fffff]")
_FORBIDDEN_NODES = (nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport)


def prepare(setup: Mapping[str, object]) -> Work:
    """The work of a worker. A job is [source, variables] in JSON; without variables the source is compiled alone."""
    environment = ChatEnvironment()
    load: Callable[[str], Template] = functools.lru_cache(_MAX_TEMPLATES)(environment.load)

    def work(job: bytes | bytearray) -> bytes:
        source, variables = json.loads(job)
        try:
            template = load(source)
            text = "" if variables is None else _render(template, variables)
        except MemoryError:
            raise
        except Exception as error:
            return FAILED + _message(error).encode(errors="replace")
        return RENDERED + text.encode(errors="surrogatepass")

    return work


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """jinja2's sandbox with the functions and the white space of Hugging Face's."""

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"], cache_size=0)
        self.filters["tojson"] = _tojson
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = lambda format: datetime.datetime.now().strftime(format)

    def unsafe_undefined(self, obj: object, attribute: str) -> Undefined:
        """A private name is an error at once; a method that changes things only when it is used, as in jinja2."""
        if attribute.startswith("_"):
            kind = "an undefined name" if isinstance(obj, Undefined) else f"a {type(obj).__name__}"
            raise SecurityError(f"access to {attribute} of {kind}")
        return super().unsafe_undefined(obj, attribute)

    def load(self, source: str) -> Template:
        """Compiles a template.

        Raises:
            jinja2.TemplateSyntaxError: it is no template, or wants other files.
        """
        if len(source) > MAX_SOURCE_CHARS:
            raise TemplateSyntaxError(
                f"the source has {len(source)} characters, at most {MAX_SOURCE_CHARS} are read", 1
            )
        for node in self.parse(source).find_all(_FORBIDDEN_NODES):
            raise TemplateSyntaxError(f"{type(node).__name__} is not available in a chat template", node.lineno)
        return self.from_string(source)


def _render(template: Template, variables: Mapping[str, object]) -> str:
    pieces: list[str] = []
    length = 0
    for piece in template.generate(variables):
        length += len(piece)
        if length > MAX_OUTPUT_CHARS:
            raise TemplateRuntimeError(f"more than {MAX_OUTPUT_CHARS} characters of output")
        pieces.append(piece)
    return "".join(pieces)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """As Hugging Face has it: no HTML escapes, and characters as they are."""
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)
    # Characters of the last plane stand in for others (`template.py`): they are not to be escaped.
    return _NOT_ASCII.sub(lambda match: json.dumps(match[0])[1:-1], text) if ensure_ascii else text


def _raise_exception(message: object) -> None:
    raise TemplateRuntimeError(str(message))


def _message(error: Exception) -> str:
    """One line that says where in the template and what."""
    line = getattr(error, "lineno", None)
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    text = " ".join((getattr(error, "message", None) or str(error) or type(error).__name__).split())
    if len(text) > _MAX_SHOWN_CHARS:
        text = text[:_MAX_SHOWN_CHARS] + "..."
    return f"{f'line {line}: ' if line else ''}{text}"
