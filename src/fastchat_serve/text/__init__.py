"""What engines share: text from tokens, stop strings, chat templates, tool calls.

What reads a stream gives the same result however the stream is cut into pieces.
"""

from fastchat_serve.text.answer import AnswerText
from fastchat_serve.text.chat_template import ChatTemplate
from fastchat_serve.text.detokenize import Detokenizer, TokenBytes, Tokenizer
from fastchat_serve.text.stop import StopStrings
from fastchat_serve.text.template_meter import TemplateLimits
from fastchat_serve.text.tools import (
    TOOL_PARSERS,
    HermesToolParser,
    TextDelta,
    ToolCallDelta,
    ToolEvent,
    ToolParser,
)

__all__ = [
    "TOOL_PARSERS",
    "AnswerText",
    "ChatTemplate",
    "Detokenizer",
    "HermesToolParser",
    "StopStrings",
    "TemplateLimits",
    "TextDelta",
    "TokenBytes",
    "Tokenizer",
    "ToolCallDelta",
    "ToolEvent",
    "ToolParser",
]
