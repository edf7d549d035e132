"""Chat templates: Jinja programs that come with a checkpoint, run as the untrusted code they are.

The names and filters a template sees are those of the ecosystem. What differs is that every render has a budget: loops,
calls and the characters that are built are counted, and a template that spends too much is stopped. The count does not
depend on the machine's speed, so what renders once renders everywhere.
"""

from __future__ import annotations

import functools
import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.utils import Namespace

from etymon.errors import RenderError

MAX_SOURCE = 1_000_000  # characters of a template; published ones stay below 30,000
# A render may spend so many units, and more for every character of its input. A character that is built costs one.
_BUDGET = 8_000_000
_BUDGET_PER_CHARACTER = 32
_TURN = 100  # units for a turn of a loop; a call costs two such. A hostile template runs for about a second
_WIDEST = 10_000  # the largest number that a filter or method may be given as a width or count
_BIGGEST = 1_000  # bytes of a whole number
_FORMAT_WIDTH = re.compile(r"%[^a-zA-Z%]*(\d{4,}|\*)|:[^{}]*\d{4,}|:[^{}]*\{")
_DROPPED_FILTERS = ("format", "pprint", "random", "urlize", "wordwrap", "xmlattr")
# Private marks around {% generation %} blocks; only where a render asks for them.
GENERATION_OPEN, GENERATION_CLOSE = "\U000f0000", "\U000f0001"


class _Spent(threading.local):
    left = 0
    marks = False
    now: datetime | None = None


def _size(value: object) -> int:
    if isinstance(value, (str, bytes, list, tuple, dict)):
        return len(value)
    return value.bit_length() // 8 if isinstance(value, int) else 0


class _GenerationBlock(Extension):
    """`{% generation %}…{% endgeneration %}`: the part of the text that the model itself writes."""

    tags = {"generation"}  # noqa: RUF012 - Jinja declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Callable[[], str]) -> str:
        text = caller()
        return GENERATION_OPEN + text + GENERATION_CLOSE if _SPENT.marks else text


class _Names(Namespace):
    """Jinja's namespace() without names that begin with an underscore, which could reach into Python itself."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            _refuse_private(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: object) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise SecurityError(f"A template may not set the attribute {name!r}.")


def _raise_exception(message: object) -> None:
    raise jinja2.TemplateError(str(message))


def _strftime_now(format: str) -> str:
    _narrow((format,))
    return (_SPENT.now or datetime.now()).strftime(format)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Not Jinja's own tojson, which escapes HTML: templates mean plain JSON.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _narrow(args: Sequence[object]) -> None:
    for arg in args:
        if isinstance(arg, int) and abs(arg) > _WIDEST:
            raise SecurityError(f"A template may not use {arg} as a width or count (at most {_WIDEST}).")
        if isinstance(arg, str) and len(arg) < 1000 and "%" in arg and re.search(r"%[^a-zA-Z%]*\d{4}", arg):
            raise SecurityError(f"A template may not use the format {arg!r}.")


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_GenerationBlock, loopcontrols],
            finalize=self._shown,
            optimized=False,  # folding constants would run a template's expressions before any budget is set
            cache_size=0,
        )
        self.globals = {
            "range": self._range,
            "dict": lambda *args, **kwargs: dict(*args, **kwargs),
            "namespace": _Names,
            "joiner": self.globals["joiner"],
            "cycler": self.globals["cycler"],
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }
        for name in _DROPPED_FILTERS:
            self.filters.pop(name, None)
        self.filters["tojson"] = _tojson
        self.filters = {name: self._metered_filter(name, run) for name, run in self.filters.items()}

    def charge(self, units: int = 1) -> None:
        """Spend `units` of the running render's budget; raises SecurityError when it is used up."""
        _SPENT.left -= units
        if _SPENT.left < 0:
            raise SecurityError("The chat template does too much work or writes too much text, and was stopped.")

    def joined(self, *parts: object) -> str:
        """The `~` operator."""
        texts = [part if isinstance(part, str) else str(part) for part in parts]
        self.charge(sum(map(len, texts)))
        return "".join(texts)

    def _metered_filter(self, name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        skip = 1 if hasattr(run, "jinja_pass_arg") else 0  # the context or environment comes first

        @functools.wraps(run)
        def metered(*args: Any, **kwargs: Any) -> Any:
            self._pay(name, *args[skip:], **kwargs)
            return run(*args, **kwargs)

        return metered

    def _pay(self, name: str, value: Any = None, *args: Any, **kwargs: Any) -> None:
        """Charge for a filter or string method before it runs."""
        arguments = [*args, *kwargs.values()]
        _narrow(arguments)
        self.charge(2 * _TURN + _size(value) + self._growth(name, value, arguments))

    def _growth(self, name: str, value: Any, arguments: Sequence[Any]) -> int:
        texts = [len(a) for a in arguments if isinstance(a, str)]
        numbers = [abs(a) for a in arguments if isinstance(a, int)]
        if name == "replace" and len(texts) > 1 and isinstance(value, str):
            return (value.count(arguments[0]) if arguments[0] else len(value) + 1) * texts[-1]
        if name == "join":
            items = arguments[0] if arguments and not isinstance(arguments[0], str) else value
            glue = value if isinstance(value, str) and items is not value else (arguments[0] if texts else "")
            if isinstance(items, (list, tuple)):
                return len(items) * (1 + len(str(glue))) + sum(_size(item) for item in items)
            return _WIDEST
        if name in ("indent", "tojson"):  # every line or level repeats the indentation
            return _size(value) * sum(texts + numbers) if name == "indent" else 100 * sum(texts + numbers)
        return sum(texts) + sum(numbers)

    def _shown(self, value: Any) -> Any:
        if isinstance(value, str):
            self.charge(1 + len(value))
            return value
        if isinstance(value, jinja2.Undefined):
            return value
        text = str(value)
        self.charge(1 + len(text))
        return text

    def _range(self, *args: int) -> range:
        values = range(*args)
        self.charge(_TURN + len(values))
        return values

    def built(self, value: Any) -> Any:
        """A list, tuple or dict that the template writes out: it pays for all that is in it, however deep.

        Otherwise sixty turns of `x = [x, x]` would make a value that takes for ever to print or compare.
        """
        waiting = [value]
        while waiting:
            item = waiting.pop()
            self.charge(10 + (len(item) if isinstance(item, str) else 0))
            if isinstance(item, (list, tuple)):
                waiting += item
            elif isinstance(item, dict):
                waiting += item.values()
        return value

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        grown = _size(left) + _size(right)
        if operator == "*":
            counts = [x for x in (left, right) if isinstance(x, int)]
            if len(counts) == 2 and grown > _BIGGEST:
                raise SecurityError("A template may not compute with such large numbers.")
            if len(counts) == 1 and grown:
                sequence = right if counts[0] is left else left
                grown += _size(sequence) * max(0, counts[0])
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * abs(right) > 8 * _BIGGEST:
                raise SecurityError("A template may not compute with such large numbers.")
        elif operator == "%" and isinstance(left, str):
            if _FORMAT_WIDTH.search(left):
                raise SecurityError(f"A template may not use the format {left[:80]!r}.")
            fields = right.values() if isinstance(right, dict) else right if isinstance(right, tuple) else [right]
            grown += left.count("%") * sum(map(_size, fields))
        self.charge(1 + grown)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)
        name = getattr(__obj, "__name__", "")
        if isinstance(owner, (str, bytes)):
            if name.startswith("format") and isinstance(owner, str):
                if _FORMAT_WIDTH.search(owner):
                    raise SecurityError(f"A template may not use the format {owner[:80]!r}.")
                __self.charge(owner.count("{") * sum(len(str(x)) for x in [*args, *kwargs.values()]))
            __self._pay(name, owner, *args, **kwargs)
        elif owner is not __self:
            __self.built([*args, *kwargs.values()])
            __self.charge(2 * _TURN)
        return super().call(__context, __obj, *args, **kwargs)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _metered(super()._parse(source, name, filename))


def _metered(tree: nodes.Template) -> nodes.Template:
    """Make every loop turn, concatenation and filter of a parsed template pay from the budget."""
    loops: list[nodes.For | nodes.Macro] = [*tree.find_all(nodes.For), *tree.find_all(nodes.Macro)]
    for loop in loops:
        written = sum(len(data.data) for data in loop.find_all(nodes.TemplateData))
        turn = nodes.Call(nodes.EnvironmentAttribute("charge"), [nodes.Const(_TURN + written)], [], None, None)
        loop.body.insert(0, nodes.ExprStmt(turn).set_lineno(loop.lineno))
    return _Meter().visit(tree)


class _Meter(jinja2.visitor.NodeTransformer):
    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return nodes.Call(nodes.EnvironmentAttribute("joined"), node.nodes, [], None, None).set_lineno(node.lineno)

    def visit_List(self, node: nodes.List | nodes.Tuple | nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        if getattr(node, "ctx", "load") != "load":
            return node
        return nodes.Call(nodes.EnvironmentAttribute("built"), [node], [], None, None).set_lineno(node.lineno)

    visit_Tuple = visit_Dict = visit_List


_SPENT = _Spent()


class Template:
    """A compiled chat template.

    `searched` are the strings that it looks for inside texts, `compared` those that it compares whole values with.
    `escapes` says that it writes JSON, `generates` that it has `{% generation %}` blocks.
    """

    def __init__(self, source: str) -> None:
        if len(source) > MAX_SOURCE:
            raise RenderError(f"The chat template has {len(source)} characters; at most {MAX_SOURCE} are accepted.")
        self.source = source
        environment = _Environment()
        try:
            tree = environment.parse(source)
            self.searched, self.compared = _searched(tree), _compared(tree)
            self.escapes = any(node.name == "tojson" for node in tree.find_all(nodes.Filter))
            self.generates = re.search(r"\{%[-+]?\s*generation\b", source) is not None
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise RenderError(f"The chat template does not parse: line {error.lineno}: {error.message}") from error
        except RecursionError:
            raise RenderError("The chat template is nested too deeply to be compiled.") from None

    def render(self, variables: Mapping[str, Any], *, marks: bool = False, now: datetime | None = None) -> str:
        """Return the text. `variables` must be plain JSON values. Raises RenderError with the template's own reason.

        With `marks`, private characters stand around `{% generation %}` blocks.
        """
        size = _weight(variables)
        limit = _BUDGET + _BUDGET_PER_CHARACTER * size
        _SPENT.left, _SPENT.marks, _SPENT.now = limit, marks, now
        written, parts = 0, []
        try:
            for part in self._template.generate(**variables):
                written += len(part)
                if written > limit:
                    raise SecurityError(f"The chat template writes more than {limit} characters, and was stopped.")
                parts.append(part)
        except SecurityError as error:
            raise RenderError(f"The chat template was refused: {error}") from error
        except jinja2.TemplateError as error:
            raise RenderError(f"The chat template cannot render this conversation: {error.message or error}") from error
        except RecursionError:
            raise RenderError("The chat template calls itself without end, and was stopped.") from None
        except (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError) as error:
            raise RenderError(
                f"The chat template fails on this conversation: {type(error).__name__}: {error}. "
                "It may expect other roles, or fields that the messages lack."
            ) from error
        finally:
            _SPENT.now = None
        return "".join(parts)


def _weight(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(_weight(key) + _weight(item) for key, item in value.items())
    return 1 + sum(map(_weight, value)) if isinstance(value, (list, tuple)) else 1


def _searched(tree: nodes.Template) -> frozenset[str]:
    """String constants that a template splits, strips or filters texts with, or searches them for."""
    found: set[str] = set()
    for call in tree.find_all(nodes.Call):
        if not isinstance(call.node, (nodes.EnvironmentAttribute, nodes.Name)):  # a method
            for argument in call.args:
                found |= _strings(argument)
    for step in [*tree.find_all(nodes.Filter), *tree.find_all(nodes.Test)]:
        for argument in step.args:
            found |= _strings(argument)
    for comparison in tree.find_all(nodes.Compare):
        for operand in comparison.ops:
            listed = isinstance(operand.expr, nodes.Call) and isinstance(operand.expr.node, nodes.EnvironmentAttribute)
            if operand.op in ("in", "notin") and not listed:
                found |= _strings(comparison.expr)
    for assignment in tree.find_all(nodes.Assign):  # a constant that reaches one of these by a name
        if isinstance(assignment.node, nodes.Const):
            found |= _strings(assignment.node)
    return frozenset(text for text in found if text)


def _compared(tree: nodes.Template) -> frozenset[str]:
    """String constants that a template compares whole values with."""
    return frozenset().union(*(_strings(comparison) for comparison in tree.find_all(nodes.Compare)))


def _strings(node: nodes.Node) -> set[str]:
    constants = [node] if isinstance(node, nodes.Const) else list(node.find_all(nodes.Const))
    return {constant.value for constant in constants if isinstance(constant.value, str)}


@functools.lru_cache(maxsize=64)
def compiled(source: str) -> Template:
    """`Template(source)`, compiled once."""
    return Template(source)
