"""Our wire types against those of OpenAI's own client."""

from __future__ import annotations

from typing import get_type_hints

import msgspec
import pytest
from openai.types import Completion as SdkCompletion
from openai.types import CreateEmbeddingResponse, Model, completion_create_params, embedding_create_params
from openai.types.chat import ChatCompletion as SdkChatCompletion
from openai.types.chat import ChatCompletionChunk as SdkChatCompletionChunk
from openai.types.chat import completion_create_params as chat_create_params
from pydantic import BaseModel

from fastchat_serve.protocol import openai as wire

HINTS = frozenset(
    {
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",  # OpenAI's bookkeeping
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "prediction",  # only speed depends on them
        "reasoning_effort",
        "verbosity",  # wishes, not promises
        "audio",  # says how, for the modality that is refused
        "moderation",
    }
)
"""Fields that are ignored without harm: an answer made without them is still an answer to the request."""


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (chat_create_params.CompletionCreateParamsNonStreaming, wire.ChatCompletionRequest),
        (completion_create_params.CompletionCreateParamsNonStreaming, wire.CompletionRequest),
        (embedding_create_params.EmbeddingCreateParams, wire.EmbeddingRequest),
    ],
)
def test_every_field_the_client_can_send_is_read_or_known_to_be_a_hint(theirs, ours):
    """Nothing that changes what an answer means is silently ignored: a new field fails here first."""
    unread = set(get_type_hints(theirs)) - set(ours.__struct_fields__)

    assert unread <= HINTS


USAGE = wire.Usage(3, 2, 5, wire.PromptTokensDetails(1))
LOGPROBS = wire.ChatLogprobs((wire.ChatTokenLogprob("a", -0.5, (97,), (wire.ChatTopLogprob("a", -0.5, (97,)),)),))
CALL = wire.ToolCallMessage("call_1", wire.FunctionCall("f", "{}"))
CALL_DELTA = wire.ToolCallDelta(0, "call_1", wire.FunctionCallDelta("f", "{}"))


def chat(message: wire.AssistantMessage, reason: str = "stop") -> wire.ChatCompletion:
    return wire.ChatCompletion("chatcmpl-1", 1, "m", (wire.ChatChoice(0, message, LOGPROBS, reason),), USAGE)


def chunk(delta: wire.Delta, reason: str | None = None) -> wire.ChatCompletionChunk:
    return wire.ChatCompletionChunk("chatcmpl-1", 1, "m", (wire.ChunkChoice(0, delta, LOGPROBS, reason),), None)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (chat(wire.AssistantMessage(content="hi")), SdkChatCompletion),
        (chat(wire.AssistantMessage(content=None, tool_calls=(CALL,)), "tool_calls"), SdkChatCompletion),
        (chunk(wire.Delta(role="assistant", content="")), SdkChatCompletionChunk),
        (chunk(wire.Delta(tool_calls=(CALL_DELTA,))), SdkChatCompletionChunk),
        (chunk(wire.Delta(), "length"), SdkChatCompletionChunk),
        (wire.ChatCompletionChunk("chatcmpl-1", 1, "m", (), USAGE), SdkChatCompletionChunk),
        (
            wire.Completion(
                "cmpl-1",
                1,
                "m",
                (
                    wire.CompletionChoice(
                        0, "a", wire.CompletionLogprobs((0,), (-1.0,), ("a",), ({"a": -1.0},)), "stop"
                    ),
                ),
                USAGE,
            ),
            SdkCompletion,
        ),
        (wire.EmbeddingList([wire.EmbeddingItem(0, [0.5])], "m", wire.EmbeddingUsage(1, 1)), CreateEmbeddingResponse),
        (wire.ModelCard("m", 1, max_model_len=8), Model),
    ],
    ids=lambda value: type(value).__name__,
)
def test_replies_are_valid_as_the_clients_own_types(ours: msgspec.Struct, theirs: type[BaseModel]):
    """Strictly: the client itself would let wrong types through and fail later."""
    data = msgspec.json.encode(ours)

    parsed = theirs.model_validate_json(data, strict=True)
    assert msgspec.json.decode(parsed.model_dump_json(exclude_unset=True)) == msgspec.json.decode(data)


def test_all_public_names_exist_and_every_request_and_reply_is_public():
    structs = {
        name for name, value in vars(wire).items() if isinstance(value, type) and value.__module__ == wire.__name__
    }

    assert set(wire.__all__) <= structs
    assert {name for name in structs if name.endswith(("Request", "List", "Completion", "Chunk"))} <= set(wire.__all__)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_no_number_in_a_reply_can_break_its_json(number):
    """Trap: JSON has no NaN, and the encoder writes null, which no client expects where a number belongs."""
    from fastchat_serve.engine import TokenLogprob
    from fastchat_serve.routes.openai.logprobs import chat_logprobs, completion_logprobs

    token = TokenLogprob(1, "a", b"a", number, (TokenLogprob(1, "a", b"a", number),))

    (entry,) = chat_logprobs([token]).content
    assert (entry.logprob, entry.top_logprobs[0].logprob) == (-9999.0, -9999.0)
    assert completion_logprobs(None, [token]).token_logprobs == (-9999.0,)
