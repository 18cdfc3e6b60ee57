"""A tool call that must come, as a grammar: in the form that `HermesToolParser` reads."""

from __future__ import annotations

import json

from fastchat_serve.engine import ChatPrompt, ToolSpec
from fastchat_serve.errors import InvalidRequest
from fastchat_serve.text.constraints.grammars import HEAD, checked_schema
from fastchat_serve.text.constraints.limits import ConstraintLimits
from fastchat_serve.text.tools import HermesToolParser

__all__ = ["call_grammar"]


def call_grammar(prompt: ChatPrompt, limits: ConstraintLimits) -> str:
    """One call of the tool that `prompt` demands, or of any. Raises `InvalidRequest`."""
    tools = [tool for tool in prompt.tools if prompt.tool_choice in ("", tool.name)]
    if not tools:
        wanted = f"a tool named {prompt.tool_choice!r}" if prompt.tool_choice else "any tool"
        raise InvalidRequest(f"tool_choice demands {wanted}, and tools has none.", param="tool_choice")
    calls = " | ".join(f"call{number}" for number in range(len(tools)))
    rules = "".join(_rules(number, tool, limits) for number, tool in enumerate(tools))
    opening, closing = json.dumps(f"{HermesToolParser.OPEN}\n"), json.dumps(f"\n{HermesToolParser.CLOSE}")
    return f"{HEAD}start: {opening} ({calls}) {closing}\n{rules}"


def _rules(number: int, tool: ToolSpec, limits: ConstraintLimits) -> str:
    before = json.dumps(f'{{"name": {json.dumps(tool.name)}, "arguments": ')
    schema = checked_schema({"type": "object", **(tool.parameters or {})}, "tools", limits)
    return f'call{number}: {before} arguments{number} "}}"\narguments{number}: %json {schema}\n'
