"""Jinja as chat templates use it, with limits on what a template may do.

A chat template comes with the model, so it is somebody's code. It runs in Jinja's immutable sandbox
and is metered: a count of every pass through a loop or macro, and of every character written, is woven
into its syntax tree, so that no construct goes around it. Operators, filters and methods that make much out
of little (``"x" * 10**9``) are refused by `template_growth`. What happens *within* one of them is not metered; a
template should still be rendered in a thread, beside the event loop.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from types import BuiltinMethodType
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes, pass_context
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fastchat_serve.errors import ConfigError, InvalidRequest
from fastchat_serve.text.template_growth import NEEDLESS_METHODS, Growth
from fastchat_serve.text.template_meter import LimitReached, Meter, TemplateLimits

__all__ = ["SandboxedTemplate"]

_STEP, _WRITE, _JOIN, _METER = "-step", "-write", "-join", "-meter"
"""Names for the syntax tree that no template can spell, so none can replace what they stand for."""

_MAX_INTEGER_BITS = 1024


class SandboxedTemplate:
    """A compiled template.

    Attributes:
        names: The variables it reads, wherever they come from.
        iterates_content: It has a loop over the parts of a message's content.
        tests_for_string: It tells strings from other values.
    """

    def __init__(self, source: str, *, limits: TemplateLimits, clock: Callable[[], datetime]) -> None:
        """Raises `ConfigError` for a template that is no valid Jinja."""
        environment = _Environment(limits, clock)
        try:
            tree = environment.parse(source)
            self.names = frozenset(name.name for name in tree.find_all(nodes.Name) if name.ctx == "load")
            self.iterates_content = _iterates_content(tree)
            self.tests_for_string = any(test.name == "string" for test in tree.find_all(nodes.Test))
            _weave_in_meter(tree)
            self._template = environment.from_string(tree)
        except jinja2.TemplateSyntaxError as error:
            raise ConfigError(f"line {error.lineno} of the chat template: {error.message}") from error
        except RecursionError as error:
            raise ConfigError("the chat template is nested too deeply") from error
        self._limits = limits

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text. Raises `InvalidRequest` if the template refuses or fails, or if it reaches a limit."""
        try:
            return self._template.render({**variables, _METER: Meter(self._limits)})
        except LimitReached as error:
            raise InvalidRequest(
                f"The chat template was stopped: it took {error}.", param="messages", code="chat_template_limit"
            ) from error
        except _Refusal as error:
            raise InvalidRequest(str(error), param="messages", code="chat_template_refused") from error
        except Exception as error:  # a template is a program, so anything may go wrong in it
            # Of these two the message is known to name no path or address of ours.
            reason = error if isinstance(error, (jinja2.UndefinedError, OverflowError)) else type(error).__name__
            raise InvalidRequest(
                f"The model's chat template cannot render these messages: {reason}",
                param="messages",
                code="chat_template_failed",
            ) from error


class _Refusal(Exception):
    """The template called ``raise_exception``; the message is its own."""


class _Environment(ImmutableSandboxedEnvironment):
    """The dialect in which Hugging Face's chat templates are written."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, limits: TemplateLimits, clock: Callable[[], datetime]) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"])
        self._growth = Growth(limits.characters)
        self.filters = self._growth.guard(self.filters | {"tojson": _tojson})
        self.filters.update({_STEP: _step, _WRITE: self._write, _JOIN: self._joined})
        self.globals.update(raise_exception=_raise_exception, strftime_now=lambda format: clock().strftime(format))
        del self.globals["lipsum"]

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Arithmetic, unless its result would be too large."""
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * max(right, 0) if operator == "**" else left.bit_length() + right.bit_length()
            if bits > _MAX_INTEGER_BITS:
                raise LimitReached(f"a number of more than {_MAX_INTEGER_BITS} bits")
        elif operator == "+":
            self._growth.check(_size(left) + _size(right))
        elif operator == "*":
            repeated, times = (left, right) if isinstance(right, int) else (right, left)
            self._growth.check(_size(repeated) * times if isinstance(times, int) else 0)
        elif operator == "%":
            self._growth.percent(left, right)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, called: Any, *args: Any, **kwargs: Any) -> Any:
        """A call, unless it is one of a string's method that would make too much."""
        if isinstance(called, BuiltinMethodType) and isinstance(called.__self__, str):
            if called.__name__ == "replace":
                self._growth.replaced(called.__self__, *args)
            elif called.__name__ == "join":
                self._growth.joined(args[0] if args else (), called.__self__)
        return super().call(context, called, *args, **kwargs)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        needless = isinstance(obj, str) and attr in NEEDLESS_METHODS
        return not needless and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Jinja's own, for ``'{}'.format``, with a look at the widths first."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def checked(*args: Any, **kwargs: Any) -> str:
            self._growth.formatted(value.__self__, args, kwargs)
            return wrapped(*args, **kwargs)

        return checked

    def _text(self, value: Any) -> str:
        self._growth.written(value)
        return str(value)

    def _joined(self, values: list[Any]) -> str:
        """What ``~`` makes."""
        texts = [value if isinstance(value, str) else self._text(value) for value in values]
        self._growth.check(sum(map(len, texts)))
        return "".join(texts)

    @pass_context
    def _write(self, context: Context, value: Any) -> str:
        text = value if isinstance(value, str) else self._text(value)
        context.parent[_METER].write(len(text))
        return text


class _GenerationTag(Extension):
    """``{% generation %}`` marks what the assistant wrote, for training; here it only opens a scope."""

    tags = frozenset({"generation"})  # type: ignore[assignment]  # Jinja only looks names up in it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


def _raise_exception(message: object) -> NoReturn:
    raise _Refusal(str(message))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it stands, where Jinja's own filter escapes it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


# ------------------------------------------------------------------------------------------ metering


@pass_context
def _step(context: Context, value: Any) -> Any:
    context.parent[_METER].step()
    return value


def _size(value: object) -> int:
    return len(value) if isinstance(value, (str, list, tuple)) else 0


def _weave_in_meter(tree: nodes.Template) -> None:
    """Count passes at the head of every body that can run more than once, and characters wherever text is written."""
    loops = list(tree.find_all(nodes.For))
    repeatable: list[nodes.For | nodes.Macro] = [*loops, *tree.find_all(nodes.Macro)]
    for block in repeatable:
        block.body.insert(0, nodes.ExprStmt(_filtered(nodes.Const(None), _STEP)))
    for loop in loops:
        if isinstance(loop.test, nodes.Expr):
            loop.test = _filtered(loop.test, _STEP)  # items that it leaves out are passes as well
    for output in tree.find_all(nodes.Output):
        output.nodes = [_filtered(node, _WRITE) for node in output.nodes]
    for concatenation in list(tree.find_all(nodes.Concat)):
        operands = nodes.List(concatenation.nodes, lineno=concatenation.lineno)
        concatenation.nodes = [_filtered(operands, _JOIN)]


def _filtered(expression: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(expression, name, [], [], None, None, lineno=expression.lineno)


# ------------------------------------------------------------------------------------------ analysis


def _iterates_content(tree: nodes.Template) -> bool:
    aliases = {
        assignment.target.name
        for assignment in tree.find_all(nodes.Assign)
        if isinstance(assignment.target, nodes.Name) and _is_content(assignment.node)
    }
    return any(
        _is_content(loop.iter) or (isinstance(loop.iter, nodes.Name) and loop.iter.name in aliases)
        for loop in tree.find_all(nodes.For)
    )


def _is_content(node: nodes.Node) -> bool:
    """Whether it reads ``….content`` or ``…['content']``."""
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    return isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and node.arg.value == "content"
