"""Conversations rendered with a template that a worker of FastChat's sends: one of 23 styles of separators.

The styles go by number, and the numbers were moved: 0.2.36 has 19 styles, later versions put one in the middle and
three at the end. Whoever sends `max_image_size_mb` counts in the later way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle
from types import MappingProxyType
from typing import Literal

from msgspec import UNSET, Struct

from fastchat_serve.engine import Message
from fastchat_serve.errors import EngineError, Unsupported
from fastchat_serve.protocol.fastchat import Conversation

__all__ = ["LATER_STYLES", "STYLES", "render"]

STYLES = (
    *("ADD_COLON_SINGLE", "ADD_COLON_TWO", "ADD_COLON_SPACE_SINGLE", "NO_COLON_SINGLE", "NO_COLON_TWO"),
    *("ADD_NEW_LINE_SINGLE", "LLAMA2", "CHATGLM", "CHATML", "CHATINTERN", "DOLLY", "RWKV", "PHOENIX", "ROBIN"),
    *("FALCON_CHAT", "CHATGLM3", "DEEPSEEK_CHAT", "METAMATH", "YUAN2"),
)
"""Those of 0.2.36, from number 1 on."""

LATER_STYLES = (*STYLES[:7], "LLAMA3", *STYLES[7:], "GEMMA", "CLLM", "DEFAULT")
"""Those of later versions, from number 1 on."""

Turn = tuple[str, str]
"""Role, as the template calls it, and text."""


class _Shape(Struct, frozen=True, kw_only=True):
    """A style that writes ``lead role before text after`` for each turn, and ``lead role open`` for the model's.

    Pairs are for even and odd turns. In all of them, {sep}, {sep2} and {round} stand for the template's.
    """

    head: str = "{system}"
    headless: str | None = None
    """In place of `head` where there is nothing to head; None: `head`, all the same."""
    headless_by: Literal["prompt", "message"] = "prompt"
    """Which of the two has to be empty for that: the rendered system prompt, or the message in it."""
    lead: tuple[str, str] = ("", "")
    before: tuple[str, str]
    after: tuple[str, str]
    open: tuple[str, str]
    edit: Callable[[str], str] = staticmethod(str)
    last_turns: int = 0
    """Only so many are written; 0: all."""


def _same(text: str) -> tuple[str, str]:
    return text, text


_SEPS = ("{sep}", "{sep2}")

_COLON_TWO = _Shape(head="{system}{sep}", before=_same(": "), after=_SEPS, open=_same(":"))
_SHAPES = MappingProxyType(
    {
        "ADD_COLON_SINGLE": _Shape(head="{system}{sep}", before=_same(": "), after=_same("{sep}"), open=_same(":")),
        "ADD_COLON_TWO": _COLON_TWO,
        "ADD_COLON_SPACE_SINGLE": _Shape(
            head="{system}{sep}", before=_same(": "), after=_same("{sep}"), open=_same(": ")
        ),
        "NO_COLON_SINGLE": _Shape(before=_same(""), after=_same("{sep}"), open=_same("")),
        "NO_COLON_TWO": _Shape(before=_same(""), after=_SEPS, open=_same("")),
        "ADD_NEW_LINE_SINGLE": _Shape(
            head="{system}{sep}", headless="", before=_same("\n"), after=_same("{sep}"), open=_same("\n")
        ),
        "CHATGLM": _Shape(
            head="{system}{sep}",
            headless="",
            lead=("[Round {round}]{sep}", ""),
            before=_same("："),
            after=_same("{sep}"),
            open=_same("："),
        ),
        "CHATML": _Shape(
            head="{system}{sep}\n", headless="", before=_same("\n"), after=_same("{sep}\n"), open=_same("\n")
        ),
        "CHATINTERN": _Shape(lead=("<s>", ""), before=_same(":"), after=("{sep}\n", "{sep2}\n"), open=_same(":")),
        "DOLLY": _Shape(before=_same(":\n"), after=("{sep}", "{sep2}\n\n"), open=_same(":\n")),
        "RWKV": _Shape(
            before=_same(": "),
            after=_same("\n\n"),
            open=_same(":"),
            edit=lambda text: text.replace("\r\n", "\n").replace("\n\n", "\n"),
        ),
        "PHOENIX": _Shape(before=_same(": <s>"), after=_same("</s>"), open=_same(": <s>")),
        "ROBIN": _Shape(head="{system}{sep}", before=_same(":\n"), after=_same("{sep}"), open=_same(":\n")),
        "FALCON_CHAT": _Shape(
            head="{system}{sep}",
            headless="",
            headless_by="message",
            before=_same(": "),
            after=_same("{sep}"),
            open=_same(":"),
        ),
        "CHATGLM3": _Shape(headless="", headless_by="message", before=_same("\n"), after=_same(""), open=_same("")),
        "DEEPSEEK_CHAT": _Shape(before=_same(": "), after=_SEPS, open=_same(":")),
        "METAMATH": _Shape(
            head="{system}{sep}",
            headless="",
            before=(":\n", ": {sep2}"),
            after=("{sep}", ""),
            open=(":\n", ": {sep2}"),
        ),
        "LLAMA3": _Shape(
            head="<|begin_of_text|>{system}",
            headless="<|begin_of_text|>",
            headless_by="message",
            lead=_same("<|start_header_id|>"),
            before=_same("<|end_header_id|>\n\n"),
            after=_same("<|eot_id|>"),
            open=_same("<|end_header_id|>\n\n"),
            edit=str.strip,
        ),
        "GEMMA": _Shape(
            head="<bos>", lead=_same("<start_of_turn>"), before=_same("\n"), after=_same("{sep}"), open=_same("\n")
        ),
        "CLLM": _Shape(
            head=_COLON_TWO.head, before=_COLON_TWO.before, after=_COLON_TWO.after, open=_COLON_TWO.open, last_turns=2
        ),
        "DEFAULT": _Shape(head="{system}\n", before=_same(": "), after=_same("\n"), open=_same(":")),
    }
)


def render(template: Conversation, messages: Sequence[Message]) -> str:
    """The prompt: the template's examples, `messages`, and the beginning of the model's turn.

    A system message takes the place of the template's own, wherever it stands; the last one counts.

    Raises:
        Unsupported: There is a message of a role that FastChat does not know.
        EngineError: The template is of no style that there is.
    """
    system_message = template.system_message
    turns: list[Turn] = [(role, text or "") for role, text in template.messages]
    for message in messages:
        if message.role == "system":
            system_message = message.text
        elif message.role in ("user", "assistant"):
            turns.append((template.roles[message.role == "assistant"], message.text))
        else:
            raise Unsupported(f"This model's template has no role {message.role!r}.", param="messages")
    turns.append((template.roles[1], ""))
    system = _filled(template.system_template, system_message)
    match _style(template):
        case "LLAMA2":
            return _llama2(template, system if system_message else "[INST] ", turns)
        case "YUAN2":
            return _yuan2(template, system if system_message else "", turns)
        case style:
            return _shaped(_SHAPES[style], template, system, system_message, turns)


def _style(template: Conversation) -> str:
    styles = STYLES if template.max_image_size_mb is UNSET else LATER_STYLES
    if not 1 <= template.sep_style <= len(styles):
        raise EngineError(f"The worker's conversation template has a style that is not known: {template.sep_style}.")
    return styles[template.sep_style - 1]


def _filled(system_template: str, system_message: str) -> str:
    """As `str.format` would, but for what a foreign template could make that do."""
    parts = system_template.split("{system_message}")
    return system_message.join(part.replace("{{", "{").replace("}}", "}") for part in parts)


def _shaped(shape: _Shape, template: Conversation, system: str, system_message: str, turns: Sequence[Turn]) -> str:
    first_round = 1 if template.name == "chatglm2" else 0
    heading = system if shape.headless_by == "prompt" else system_message
    head = shape.head if heading or shape.headless is None else shape.headless

    def fill(pattern: str, number: int = 0) -> str:
        known = {"sep": template.sep or "", "sep2": template.sep2 or "", "round": number // 2 + first_round}
        return pattern.format(system=system, **known)

    parts = [fill(head)]
    for number, (role, text) in enumerate(turns[-shape.last_turns :]):
        odd = number % 2
        parts += [fill(shape.lead[odd], number), role]
        if text:
            parts += [fill(shape.before[odd]), shape.edit(text), fill(shape.after[odd])]
        else:
            parts.append(fill(shape.open[odd]))
    return "".join(parts)


def _llama2(template: Conversation, head: str, turns: Sequence[Turn]) -> str:
    """The first message stands in the same brackets as the system message."""
    parts = [head]
    separators = cycle((template.sep or "", template.sep2 or ""))
    for number, ((_, text), separator) in enumerate(zip(turns, separators, strict=False)):
        tag = template.roles[number % 2]
        if not text:
            parts.append(tag)
        elif number == 0:
            parts.append(f"{text} ")
        else:
            parts.append(f"{tag} {text}{separator}")
    return "".join(parts)


def _yuan2(template: Conversation, system: str, turns: Sequence[Turn]) -> str:
    """Roles are not written; the last mark between turns is left out."""
    head = system + (template.sep2 or "") if system else ""
    return head + "<n>".join(text for _, text in turns if text) + (template.sep or "")
