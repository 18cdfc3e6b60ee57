"""From a conversation to the text that the model was trained to continue.

The template is the model's own. There is no default: a model without one gets no `ChatTemplate`, and
says that it cannot chat.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from fastchat_serve.engine import ChatPrompt, Message, TextPart, ToolCall, ToolSpec
from fastchat_serve.errors import ConfigError, InvalidRequest
from fastchat_serve.text.template_meter import TemplateLimits

__all__ = ["ChatTemplate"]

_RESERVED = frozenset(
    ["add_generation_prompt", "chat_template", "continue_final_message", "documents", "messages", "tokenize", "tools"]
)
"""Variables that no option of a request may set, whatever the operator allows."""

_CUT = "\ue000cut\ue001"
"""Marks where the final message's content ends; private-use characters, which no model's vocabulary writes."""


class ChatTemplate:
    """A model's chat template.

    Attributes:
        source: The Jinja text.
        supports_tools: The template writes tool specifications into the prompt.
        tool_parser: Name of the parser for the calls it teaches the model to write; empty if unknown.
    """

    def __init__(
        self,
        source: str,
        *,
        special_tokens: Mapping[str, str],
        options: Mapping[str, type] | None = None,
        limits: TemplateLimits | None = None,
        clock: Callable[[], datetime] = datetime.now,
    ) -> None:
        """
        Args:
            source: The Jinja text.
            special_tokens: The tokenizer's, by the names templates use, for instance ``bos_token``.
            options: Variables that a request may set, and the type of each: str, int, float or bool.
            limits: What one rendering may take.
            clock: The local time, for templates that tell the model the date.

        Raises:
            ConfigError: The template is no valid Jinja, or an option is a variable that requests must not set.
        """
        from fastchat_serve.text.template_sandbox import SandboxedTemplate  # brings Jinja, which only chat needs

        self._options = dict(options or {})
        if reserved := self._options.keys() & (_RESERVED | special_tokens.keys()):
            raise ConfigError(f"{min(reserved)!r} cannot be a template option: the server sets it")
        self.source = source
        self._special_tokens = dict(special_tokens)
        self._template = SandboxedTemplate(source, limits=limits or TemplateLimits(), clock=clock)
        self.supports_tools = "tools" in self._template.names
        self.tool_parser = "hermes" if "<tool_call>" in source and "<function=" not in source else ""

    def render(self, prompt: ChatPrompt) -> str:
        """The prompt's text, special tokens included, up to where the answer begins.

        Raises `InvalidRequest` if an option is not allowed or the template does not take the conversation.
        """
        messages = [self._message(message) for message in prompt.messages]
        if prompt.continue_final:
            _mark_end(messages)
        elif not messages:
            raise InvalidRequest("A conversation needs at least one message.", param="messages")
        text = self._template.render(
            self._checked_options(prompt.template_options or {})
            | self._special_tokens
            | {
                "messages": messages,
                "tools": [_tool(tool) for tool in prompt.tools] or None,
                "documents": None,
                "add_generation_prompt": not prompt.continue_final,
            }
        )
        return _cut_at_mark(text) if prompt.continue_final else text

    def _checked_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        for name, value in options.items():
            expected = self._options.get(name)
            if expected is None:
                allowed = ", ".join(sorted(self._options)) or "none"
                raise InvalidRequest(
                    f"The chat template option {name[:100]!r} is not allowed here. Allowed: {allowed}.",
                    param="chat_template_kwargs",
                )
            if type(value) is not expected and not (expected is float and type(value) is int):
                raise InvalidRequest(
                    f"The chat template option {name!r} must be of type {expected.__name__}.",
                    param="chat_template_kwargs",
                )
        return dict(options)

    def _message(self, message: Message) -> dict[str, Any]:
        """The message as templates expect it."""
        fields: dict[str, Any] = {"role": message.role, "content": self._content(message)}
        if message.name is not None:
            fields["name"] = message.name
        if message.tool_calls:
            fields["tool_calls"] = [_tool_call(call) for call in message.tool_calls]
        if message.tool_call_id is not None:
            fields["tool_call_id"] = message.tool_call_id
        return fields

    def _content(self, message: Message) -> str | list[dict[str, str]]:
        """One string, unless the template reads parts; then parts, and strings only if it tells them apart."""
        if not self._template.iterates_content:
            return message.text
        if isinstance(message.content, tuple):
            return [_part(part) for part in message.content]
        return message.text if self._template.tests_for_string else [_part(TextPart(message.text))]


def _part(part: TextPart) -> dict[str, str]:
    return {"type": "text", "text": part.text}


def _tool_call(call: ToolCall) -> dict[str, Any]:
    """Arguments as an object, for templates write it with ``tojson``; as the text it was if it is none."""
    try:
        arguments = json.loads(call.arguments)
    except (ValueError, RecursionError):
        arguments = None
    function = {"name": call.name, "arguments": arguments if isinstance(arguments, dict) else call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _tool(tool: ToolSpec) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.parameters is not None:
        function["parameters"] = tool.parameters
    return {"type": "function", "function": function}


def _mark_end(messages: list[dict[str, Any]]) -> None:
    """Put the mark and one space behind the final message's content: a template that trims takes the space away."""
    if not messages or messages[-1]["role"] != "assistant":
        raise InvalidRequest(
            "Only an answer can be continued: the last message must be the assistant's.", param="messages"
        )
    content = messages[-1]["content"]
    if isinstance(content, str):
        messages[-1]["content"] = content + _CUT + " "
    elif content:
        content[-1]["text"] += _CUT + " "
    else:
        content.append(_part(TextPart(_CUT + " ")))


def _cut_at_mark(text: str) -> str:
    before, mark, after = text.rpartition(_CUT)
    if not mark:
        raise InvalidRequest(
            "This model's chat template does not show the last message as it is, so it cannot be continued.",
            param="messages",
        )
    return before if after.startswith(" ") else before.rstrip()
