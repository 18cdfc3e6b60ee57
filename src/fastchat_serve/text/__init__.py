"""What engines share: prompts to tokens, text from tokens, stop strings, chat templates, constraints, tool calls.

What reads a stream gives the same result however the stream is cut into pieces.
"""

from fastchat_serve.text.answer import AnswerText
from fastchat_serve.text.chat_template import ChatTemplate
from fastchat_serve.text.constraints import ConstraintLimits, Constraints, Matcher
from fastchat_serve.text.detokenize import ByteDetokenizer, Detokenizer, TextOfTokens, TokenBytes, Tokenizer
from fastchat_serve.text.lanes import Lanes, is_slow
from fastchat_serve.text.model_template import VariableType, chat_template_of, make_template
from fastchat_serve.text.prompts import PreparedPrompt, Prompts, check_text
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
from fastchat_serve.text.vocabulary import TokenizerVocabulary, Vocabulary, tokenizer_of

__all__ = [
    "TOOL_PARSERS",
    "AnswerText",
    "ByteDetokenizer",
    "ChatTemplate",
    "ConstraintLimits",
    "Constraints",
    "Detokenizer",
    "HermesToolParser",
    "Lanes",
    "Matcher",
    "PreparedPrompt",
    "Prompts",
    "StopStrings",
    "TemplateLimits",
    "TextDelta",
    "TextOfTokens",
    "TokenBytes",
    "Tokenizer",
    "TokenizerVocabulary",
    "ToolCallDelta",
    "ToolEvent",
    "ToolParser",
    "VariableType",
    "Vocabulary",
    "chat_template_of",
    "check_text",
    "is_slow",
    "make_template",
    "tokenizer_of",
]
