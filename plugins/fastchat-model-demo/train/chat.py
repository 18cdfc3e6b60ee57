"""A conversation, and its text in the model's ChatML form.

`render` says the same as `chat_template.jinja` (a test compares them) and also which pieces the assistant writes,
which the template can not say. Tokens are the business of `corpus`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, NotRequired, TypedDict

TOOLS_HEAD: Final = "You can call these tools:\n<tools>\n"
TOOLS_TAIL: Final = (
    "</tools>\nTo call a tool, answer with:\n"
    '<tool_call>\n{"name": "the tool", "arguments": {"the argument": "its value"}}\n</tool_call>'
)


class ToolCall(TypedDict):
    name: str
    arguments: Mapping[str, Any]


class Message(TypedDict):
    role: str
    content: str
    tool_calls: NotRequired[Sequence[Mapping[str, ToolCall]]]


class Conversation(NamedTuple):
    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] = ()


class Piece(NamedTuple):
    text: str
    learnt: bool  # written by the assistant


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def calling(*calls: ToolCall) -> Message:
    return {"role": "assistant", "content": "", "tool_calls": [{"function": call} for call in calls]}


def answered(content: str) -> Message:
    return {"role": "tool", "content": content}


def assistant_text(message: Message) -> str:
    """What the model must write for this message."""
    text = message["content"]
    for index, call in enumerate(message.get("tool_calls", ())):
        function = call["function"]
        arguments = json.dumps(function["arguments"], ensure_ascii=False)
        text += "\n" if index or text else ""
        text += f'<tool_call>\n{{"name": "{function["name"]}", "arguments": {arguments}}}\n</tool_call>'
    return text


def render(conversation: Conversation) -> list[Piece]:
    """Cut the conversation into pieces that are learnt and pieces that are only read."""
    messages = list(conversation.messages)
    system = messages.pop(0)["content"] if messages and messages[0]["role"] == "system" else ""
    if conversation.tools:
        listed = "".join(json.dumps(tool, ensure_ascii=False) + "\n" for tool in conversation.tools)
        system += ("\n\n" if system else "") + TOOLS_HEAD + listed + TOOLS_TAIL
    pieces = [Piece(f"<|im_start|>system\n{system}<|im_end|>\n", False)] if system else []
    for index, message in enumerate(messages):
        match message["role"]:
            case "assistant":
                pieces.append(Piece("<|im_start|>assistant\n", False))
                pieces.append(Piece(assistant_text(message) + "<|im_end|>", True))
                pieces.append(Piece("\n", False))
            case "tool":
                first = index == 0 or messages[index - 1]["role"] != "tool"
                last = index + 1 == len(messages) or messages[index + 1]["role"] != "tool"
                text = "<|im_start|>user" if first else ""
                text += f"\n<tool_response>\n{message['content']}\n</tool_response>" + ("<|im_end|>\n" if last else "")
                pieces.append(Piece(text, False))
            case role:
                pieces.append(Piece(f"<|im_start|>{role}\n{message['content']}<|im_end|>\n", False))
    return pieces
