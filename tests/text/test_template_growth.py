"""S6: filters, methods and operators that make much out of little are refused before they do.

Each of these took gigabytes, or minutes.
"""

from __future__ import annotations

import time
import tracemalloc
from datetime import datetime

import pytest

from fastchat_serve.errors import ConfigError, InvalidRequest
from fastchat_serve.text.template_growth import NEEDLESS_FILTERS, NEEDLESS_METHODS
from fastchat_serve.text.template_meter import TemplateLimits
from fastchat_serve.text.template_sandbox import SandboxedTemplate

NESTED = "[['x' * 1000] * 1000] * 1000"

GREEDY = [
    "'%3000000000d' % 1",
    "'%-3000000000s' % 'x'",
    "'%(a)3000000000d' % {'a': 1}",
    "'%.3000000000f' % 1.5",
    "'%*d' % (3000000000, 1)",
    "('%999d' * 100000) % (1, 2)",
    "'%s' % (" + NESTED + ",)",
    "'%3000000000d' | format(1)",
    "'{:3000000000}'.format(1)",
    "'{:{}}'.format(1, 3000000000)",
    "'{0:>{w}}'.format(1, w=3000000000)",
    "('{0:999}' * 100000).format(1)",
    "'{}'.format(" + NESTED + ")",
    "'{x:3000000000}'.format_map({'x': 1})",
    "('x' * 60000).replace('x', 'y' * 60000)",
    "('x' * 60000).replace('', 'y' * 60000)",
    "('x' * 60000) | replace('x', 'y' * 60000)",
    "('y' * 60000).join(['x'] * 60000)",
    "(['x'] * 60000) | join('y' * 60000)",
    "(['x' * 60000] * 60000) | join",
    "('\\n' * 600000) | indent(1000)",
    "'\\n' | indent(3000000000)",
    "1.5 | round(3000000000)",
    "([[1] * 1000] * 100000) | sum(start=[])",
    "(" + NESTED + ") | tojson",
    "([1] * 100000) | tojson(indent=1000)",
    "(" + NESTED + ") | string",
    "(" + NESTED + ") ~ ''",
    "('x' * 5000000) ~ ('x' * 5000000)",
    NESTED,
    "(range(100000) | map('string') | map('replace', '1', 'x' * 60000) | list)",
    "{'a': " + NESTED + "} | string",
]


@pytest.mark.parametrize("expression", GREEDY)
def test_s6_what_would_make_too_much_is_refused_at_once(expression: str) -> None:
    template = sandboxed("{% set x = '' %}{{ " + expression + " }}")

    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(InvalidRequest) as raised:
        template.render({})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert raised.value.code == "chat_template_limit", raised.value
    assert time.process_time() - began < 2
    assert peak < 64 * 2**20


@pytest.mark.parametrize("name", sorted(NEEDLESS_FILTERS))
def test_s6_filters_that_no_chat_template_needs_are_not_there(name: str) -> None:
    with pytest.raises(ConfigError, match=f"No filter named '{name}'"):
        sandboxed("{{ 'x' | " + name + " }}")


@pytest.mark.parametrize("name", sorted(NEEDLESS_METHODS))
@pytest.mark.parametrize("way", ["'x'.{name}(9)", "'x'['{name}'](9)", "('x' | attr('{name}'))(9)"])
def test_s6_methods_that_no_chat_template_needs_are_not_there(name: str, way: str) -> None:
    with pytest.raises(InvalidRequest, match="SecurityError"):
        sandboxed("{{ " + way.format(name=name) + " }}").render({})


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("'%s: %5.2f%%' % ('a', 1.5)", "a:  1.50%"),
        ("7 % 4", "3"),
        ("'%d' | format(20000)", "20000"),
        ("'{} {:>3} {x}'.format(1, 2, x=3000000000)", "1   2 3000000000"),
        ("'2024000000 {}'.format('x')", "2024000000 x"),
        ("'a-b'.replace('-', '+').split('+') | join(', ')", "a, b"),
        ("['a', 'b'] | map('upper') | join", "AB"),
        ("messages | map(attribute='role') | unique | list | string", "['user', 'tool']"),
        ("'a\\nb' | indent(2)", "a\n  b"),
        ("1.256 | round(2)", "1.26"),
        ("[1, 2] | sum", "3"),
        ("{'a': [1]} | tojson(indent=1)", '{\n "a": [\n  1\n ]\n}'),
        ("{'a': 1}.items() | list ~ none ~ 1", "[('a', 1)]None1"),
        ("messages[0] | string | length", "16"),
        ("', '.join(messages | map(attribute='role'))", "user, tool, user"),
    ],
)
def test_what_chat_templates_do_with_them_goes_on_working(expression: str, text: str) -> None:
    messages = [{"role": role} for role in ("user", "tool", "user")]

    assert sandboxed("{{ " + expression + " }}").render({"messages": messages}) == text


def test_s6_what_is_left_is_bounded_by_time() -> None:
    """What a template keeps is not counted, but it has a second to collect it."""
    source = "{% set ns = namespace(l=[]) %}{% for i in range(100000) %}{% set ns.l = ns.l + [i] %}{% endfor %}"
    began = time.process_time()

    with pytest.raises(InvalidRequest, match="stopped"):
        sandboxed(source).render({})

    assert time.process_time() - began < 2


def sandboxed(source: str) -> SandboxedTemplate:
    return SandboxedTemplate(source, limits=TemplateLimits(), clock=datetime.now)
