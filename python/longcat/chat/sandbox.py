"""A jinja2 environment for untrusted templates: a chat template comes with the checkpoint.

Three walls, each of its own:

* jinja2's immutable sandbox: no private attributes, no changing of values;
* a list of what there is: filters, methods and functions that are not on it do not exist, and values are JSON's types
  (plus jinja2's own loop, macro and namespace), so there is no path from a value to the interpreter;
* a meter. The template's syntax tree is rewritten before it is compiled, so that every loop pass, call, operator,
  filter, literal and slice goes through `Meter`. It stops the render when its time is up and refuses a value that is
  too large before the value is built. One step on values of capped size takes milliseconds at most, so the clock is
  looked at often enough, without a thread to kill or a process to start.

Output is what Hugging Face's environment gives, for every template that stays within these walls.
"""

from __future__ import annotations

import datetime
import functools
import json
import operator
import re
import string
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from jinja2 import Template, filters, nodes
from jinja2.exceptions import SecurityError, TemplateRuntimeError, TemplateSyntaxError
from jinja2.runtime import LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace
from jinja2.visitor import NodeTransformer

from longcat.chat.meter import CONTAINERS, LEAVES, MAX_INT_BITS, LimitError, Meter

MAX_SOURCE_CHARS = 1 << 16
MAX_OUTPUT_CHARS = 1 << 20
_MAX_CALL_DEPTH = 48  # of macros and recursive loops
_MAX_RANGE = 100_000
_MAX_WIDTH = 999  # of a formatted field
_MAX_INDENT = 64
_MAX_NEEDLE = 256  # searching backwards takes the product of both lengths

_FILTERS = (
    "abs capitalize count d default dictsort first float items last length list lower map max min reject rejectattr "
    "reverse select selectattr sort title truncate unique upper wordcount"
).split()
_TESTS = (
    "!= < <= == > >= boolean defined divisibleby eq equalto even false float ge greaterthan gt in integer iterable le "
    "lessthan lower lt mapping ne none number odd sameas sequence string true undefined upper"
).split()
_STR_METHODS = frozenset(
    "capitalize casefold count endswith find format index isalnum isalpha isascii isdecimal isdigit islower isnumeric "
    "isspace istitle isupper join lower lstrip partition removeprefix removesuffix replace rfind rindex rpartition "
    "rsplit rstrip split splitlines startswith strip swapcase title upper".split()
)
_METHODS: dict[type, frozenset[str]] = {
    str: _STR_METHODS,
    dict: frozenset(["get", "items", "keys", "values"]),
    list: frozenset(["count", "index"]),
    tuple: frozenset(["count", "index"]),
}
_LONG_ARGUMENTS = frozenset(["endswith", "format", "join", "removeprefix", "removesuffix", "startswith"])
_BOUND_METHODS = {LoopContext: ("cycle", "changed"), Cycler: ("next", "reset")}
_VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))
_OWN_TYPES = (LoopContext, Macro, Namespace, Cycler, Joiner)

_PERCENT = re.compile(r"%(?:\((?P<name>\w+)\))?[-+ #0]{0,4}\d{0,3}(?:\.\d{0,3})?[diouxXeEfFgGcrsa%]|(?P<other>%)")
_FIELD_SPEC = re.compile(r"(?:.?[<>=^])?[-+ ]?#?0?\d{0,3}[,_]?(?:\.\d{0,3})?[a-zA-Z%]?", re.DOTALL)
_NOT_ASCII = re.compile("[\x80-\U000fffff]")
_STRFTIME = re.compile(r"(?:[^%]|%[-#]?[a-zA-Z%])*", re.DOTALL)


class ChatSandbox(ImmutableSandboxedEnvironment):
    """The environment. It renders one template at a time: `meter` is that of the render in progress."""

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "**", "%"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=["jinja2.ext.loopcontrols"], cache_size=0
        )
        self.meter = Meter()
        self.finalize = self._printable
        self.concat = self._concat  # type: ignore[method-assign]
        own = {
            "string": self._string,
            "safe": self._string,
            "join": self._join,
            "replace": self._replace,
            "indent": self._indent,
            "trim": self._trim,
            "int": self._int,
            "tojson": self._tojson,
        }
        known = {name: self.filters[name] for name in _FILTERS} | own
        self.filters = {name: self._metered_filter(filter) for name, filter in known.items()}
        # For the rewritten tree. No template can write `|@each`. It can write map("@each"), which gains it nothing.
        self.filters |= {"@each": self._each, "@made": self._made, "@slice": self._slice, "@concat": self._concat_any}
        self.tests = {name: self._metered_test(self.tests[name]) for name in _TESTS}  # type: ignore[arg-type]
        self.globals = {
            "range": _range,
            "dict": dict,
            "namespace": Namespace,
            "cycler": Cycler,
            "joiner": Joiner,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }
        self._functions = {id(function) for function in self.globals.values()}
        self._call_depth = 0

    # --- from source to text ---------------------------------------------------------------------------------------

    def load(self, source: str) -> Template:
        """Compiles a template.

        Raises:
            jinja2.TemplateSyntaxError: it is no template, or wants other files.
        """
        if len(source) > MAX_SOURCE_CHARS:
            raise TemplateSyntaxError(
                f"the source has {len(source)} characters, at most {MAX_SOURCE_CHARS} are read", 1
            )
        self.meter = Meter()  # constant expressions are worked out while compiling
        tree = self.parse(source)
        for node in tree.find_all(_FORBIDDEN_NODES):
            raise TemplateSyntaxError(f"{type(node).__name__} is not available in a chat template", node.lineno)
        code = self.compile(_Instrument().visit(tree))
        return self.template_class.from_code(self, code, self.make_globals(None))

    def render(self, template: Template, variables: Mapping[str, object]) -> str:
        """Renders a template of this environment. Not for two threads at once.

        Args:
            variables: of JSON's types all the way down.
        Raises:
            Exception: jinja2.TemplateError or whatever a wrong template may cause in Python.
        """
        self.meter = Meter()
        self._call_depth = 0
        pieces: list[str] = []
        length = 0
        for piece in template.generate(variables):
            self.meter.tick()
            length += len(piece)
            if length > MAX_OUTPUT_CHARS:
                raise LimitError(f"more than {MAX_OUTPUT_CHARS} characters of output")
            pieces.append(piece)
        return "".join(pieces)

    # --- what compiled templates call ------------------------------------------------------------------------------

    def getattr(self, obj: object, attribute: str) -> Any:
        self.meter.tick()
        return super().getattr(obj, attribute)

    def getitem(self, obj: object, argument: object) -> Any:
        self.meter.tick()
        return super().getitem(obj, argument)

    def is_safe_attribute(self, obj: object, attr: str, value: object) -> bool:
        known = isinstance(obj, (str, *LEAVES, *CONTAINERS, *_OWN_TYPES))
        return known and super().is_safe_attribute(obj, attr, value)

    def unsafe_undefined(self, obj: object, attribute: str) -> Undefined:
        """A private name is an error at once; a method that changes things only when it is used, as in jinja2."""
        if attribute.startswith("_"):
            raise SecurityError(f"access to {attribute} of {_kind(obj)}")
        return super().unsafe_undefined(obj, attribute)

    def call_binop(self, context: object, operator: str, left: object, right: object) -> Any:
        self.meter.tick()
        if operator == "%" and isinstance(left, str):
            return self.meter.take(self._percent(left, right))
        if operator == "*":
            self._check_product(left, right)
            self._check_product(right, left)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * right > MAX_INT_BITS:
                raise LimitError(f"a number of more than {MAX_INT_BITS} bits")
        return self.meter.take(self.binop_table[operator](left, right))

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.meter.tick()
        size = 0
        for name, value in [*((None, value) for value in args), *kwargs.items()]:
            if name not in ("_loop_vars", "_block_vars") and not isinstance(value, (*_OWN_TYPES, types.GeneratorType)):
                size += self.meter.size(value)
        self.meter.room(size)
        if isinstance(obj, types.FunctionType) and obj.__name__ == "format":
            obj = getattr(obj, "__wrapped__", obj)  # jinja2's stand-in for str.format
        if isinstance(obj, types.BuiltinMethodType) and type(obj.__self__) in _METHODS:
            kwargs = {name: value for name, value in kwargs.items() if name not in ("_loop_vars", "_block_vars")}
            return self._made(self._call_method(obj, args, kwargs))
        if not self._is_callable(obj):
            raise SecurityError(f"{_kind(obj)} cannot be called")
        if self._call_depth >= _MAX_CALL_DEPTH:
            raise LimitError(f"calls nested more than {_MAX_CALL_DEPTH} deep")
        self._call_depth += 1
        try:
            result = context.call(obj, *args, **kwargs)
        finally:
            self._call_depth -= 1
        return result if isinstance(result, _OWN_TYPES) else self._made(result)

    def _is_callable(self, obj: object) -> bool:
        if isinstance(obj, types.MethodType):
            return obj.__name__ in _BOUND_METHODS.get(type(obj.__self__), ())
        return isinstance(obj, (Macro, LoopContext, Joiner)) or id(obj) in self._functions

    def _call_method(self, method: types.BuiltinMethodType, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        owner, name = method.__self__, method.__name__
        if name not in _METHODS[type(owner)]:
            raise SecurityError(f"{type(owner).__name__}.{name} is not available in a chat template")
        if not isinstance(owner, str):
            return method(*args, **kwargs)
        if name == "format":
            return _FieldFormatter(self.meter).vformat(owner, args, kwargs)
        if name == "replace":
            self._check_replace(owner, *args[:2])
        elif name == "join":
            args = tuple(list(arg) for arg in args)
            self.meter.room(sum(self.meter.size(item) + len(owner) for arg in args for item in arg))
        elif name not in _LONG_ARGUMENTS:
            _check_needles(*args, *kwargs.values())
        return method(*args, **kwargs)

    # --- checks before a value is made -----------------------------------------------------------------------------

    def _check_product(self, value: object, times: object) -> None:
        if not isinstance(times, int):
            return
        if isinstance(value, (str, list, tuple)):
            self.meter.room((len(value) if isinstance(value, str) else self.meter.size(value)) * times)
        elif isinstance(value, int) and value.bit_length() + times.bit_length() > MAX_INT_BITS:
            raise LimitError(f"a number of more than {MAX_INT_BITS} bits")

    def _check_replace(self, text: str, old: object = "", new: object = "") -> None:
        _check_needles(old)
        if isinstance(old, str) and isinstance(new, str):
            self.meter.room(len(text) + text.count(old) * len(new))

    def _percent(self, text: str, values: object) -> str:
        """`text % values` with narrow fields."""
        matches = list(_PERCENT.finditer(text))
        if any(match["other"] for match in matches):
            raise SecurityError("a % format with a wide or computed field, or none of Python's")
        repeats = len(matches) if any(match["name"] for match in matches) else 1
        self.meter.room(len(text) + len(matches) * _MAX_WIDTH + repeats * self.meter.size(values))
        return str(text % values)

    # --- filters and tests -----------------------------------------------------------------------------------------

    def _metered_filter(self, function: Callable[..., object]) -> Callable[..., Any]:
        first = 1 if hasattr(function, "jinja_pass_arg") else 0  # jinja2 passes its context or environment

        @functools.wraps(function)
        def metered(*args: object, **kwargs: object) -> Any:
            self.meter.tick()
            for value in (*args[first:], *kwargs.values()):
                if not isinstance(value, types.GeneratorType):
                    self.meter.size(value)
            return self._made(function(*args, **kwargs))

        return metered

    def _metered_test(self, function: Callable[..., bool]) -> Callable[..., bool]:
        @functools.wraps(function)
        def metered(*args: object, **kwargs: object) -> bool:
            self.meter.tick()
            return function(*args, **kwargs)

        return metered

    def _made(self, value: Any) -> Any:
        """A value that a literal, filter or call has made. Lazy ones stay lazy and go through the meter."""
        if isinstance(value, _VIEWS):
            value = list(value)  # type: ignore[call-overload]
        elif hasattr(value, "__next__"):
            return self._ticking(value)
        return self.meter.take(value)

    def _slice(self, value: object) -> Any:
        self.meter.tick()
        self.meter.charge(value)
        return value

    def _each(self, iterable: Any) -> Any:
        """The values of a `for` loop."""
        return _Each(self, iterable) if hasattr(iterable, "__len__") else self._ticking(iterable)

    def _ticking(self, iterable: Iterable[object]) -> Iterator[Any]:
        for item in iterable:
            self.meter.tick()
            yield item

    def _printable(self, value: object) -> Any:
        """jinja2's `finalize`: checks a value before it becomes text."""
        self.meter.tick()
        self.meter.size(value)
        return value

    def _string(self, value: object) -> str:
        return str(self._printable(value))

    def _concat(self, pieces: Iterable[str]) -> str:
        """jinja2's hook for the output of a macro or block."""
        texts: list[str] = []
        length = 0
        for piece in pieces:
            self.meter.tick()
            length += len(piece)
            self.meter.room(length)
            texts.append(piece)
        text = "".join(texts)
        self.meter.charge(text)
        return text

    def _concat_any(self, values: list[object]) -> str:
        """The ~ operator."""
        return self._concat(self._string(value) for value in values)

    def _join(self, value: Iterable[object], d: str = "", attribute: str | None = None) -> str:
        pick = filters.make_attrgetter(self, attribute) if attribute is not None else None
        texts: list[str] = []
        length = 0
        for item in self._ticking(value):
            texts.append(self._string(pick(item) if pick else item))
            length += len(texts[-1]) + len(str(d))
            self.meter.room(length)
        return str(d).join(texts)

    def _replace(self, value: object, old: str, new: str, count: int | None = None) -> str:
        text = self._string(value)
        self._check_replace(text, old, new)
        return text.replace(old, new, -1 if count is None else count)

    def _indent(self, value: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        text = self._string(value)
        prefix = width if isinstance(width, str) else " " * min(max(width, 0), _MAX_INDENT + 1)
        if len(prefix) > _MAX_INDENT:
            raise LimitError(f"indentation by more than {_MAX_INDENT} characters")
        self.meter.room(len(text) + (len(text.splitlines()) + 1) * len(prefix))
        return filters.do_indent(text, width, first, blank)

    def _trim(self, value: object, chars: str | None = None) -> str:
        _check_needles(chars)
        return self._string(value).strip(chars)

    def _int(self, value: object, default: int = 0, base: int = 10) -> int:
        if isinstance(value, str) and len(value) > 1000:  # quadratic in the length before Python 3.12
            raise LimitError("a number of more than 1000 digits")
        return filters.do_int(value, default, base)

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        """`tojson` as Hugging Face has it: without HTML escapes, and without escapes of characters."""
        width = len(indent) if isinstance(indent, str) else indent or 0
        if width > _MAX_INDENT or any(len(text) > _MAX_INDENT for text in separators or ()):
            raise LimitError(f"tojson with indentation or separators of more than {_MAX_INDENT} characters")
        encoder = json.JSONEncoder(ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)
        text = self._concat(encoder.iterencode(value)) if width else encoder.encode(value)
        # Characters of the last plane stand in for others (`chat_template.py`): they are not to be escaped.
        return _NOT_ASCII.sub(lambda match: json.dumps(match[0])[1:-1], text) if ensure_ascii else text


class _Each:
    """A list under the meter that still knows its length, as `loop.length` asks for it."""

    def __init__(self, sandbox: ChatSandbox, values: Any):
        self._sandbox = sandbox
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Any]:
        return self._sandbox._ticking(self._values)


class _FieldFormatter(string.Formatter):
    """str.format without attributes and items of values, and with narrow fields."""

    def __init__(self, meter: Meter):
        self._meter = meter
        self._length = 0

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> Any:
        if not field_name.isalnum() and not field_name.isidentifier():
            raise SecurityError("a format field with attributes or items")
        return super().get_field(field_name, args, kwargs)

    def format_field(self, value: object, format_spec: str) -> str:
        if not _FIELD_SPEC.fullmatch(format_spec):
            raise SecurityError("a format field that is wide, or none of Python's")
        self._meter.tick()
        self._meter.size(value)
        text = format(value, format_spec)
        self._length += len(text)
        self._meter.room(self._length)
        return text


_FORBIDDEN_NODES = (
    nodes.Extends,
    nodes.Include,
    nodes.Import,
    nodes.FromImport,
    nodes.EvalContextModifier,
    nodes.ScopedEvalContextModifier,
)


class _Instrument(NodeTransformer):
    """Sends what the environment has no hook for through filters: loops, literals, slices and ~."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _through("@each", node.iter)
        return node

    def visit_List(self, node: nodes.List) -> nodes.Node:
        return _through("@made", self.generic_visit(node))

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        return _through("@made", self.generic_visit(node))

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _through("@made", node) if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _through("@slice", node) if isinstance(node.arg, nodes.Slice) else node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _through("@concat", nodes.List(node.nodes, lineno=node.lineno, environment=node.environment))


def _through(name: str, node: Any) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno, environment=node.environment)


def _check_needles(*values: object) -> None:
    if any(isinstance(value, str) and len(value) > _MAX_NEEDLE for value in values):
        raise LimitError(f"a search for more than {_MAX_NEEDLE} characters")


def _kind(obj: object) -> str:
    return "an undefined name" if isinstance(obj, Undefined) else f"a {type(obj).__name__}"


def _range(*args: Any) -> range:
    values = range(*map(operator.index, args))
    if len(values) > _MAX_RANGE:
        raise LimitError(f"a range of more than {_MAX_RANGE} numbers")
    return values


def _raise_exception(message: object) -> None:
    raise TemplateRuntimeError(str(message))


def _strftime_now(format: object) -> str:
    if not isinstance(format, str) or len(format) > 200 or not _STRFTIME.fullmatch(format):
        raise SecurityError("strftime_now with a wide field")
    return datetime.datetime.now().strftime(format)
