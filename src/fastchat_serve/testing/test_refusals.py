"""Refusals: a request that needs what the engine does not declare never reaches it.

Here the server is under test with the engine: a real dispatcher and worker, and requests that each need one
capability more. What *is* declared is skipped here, and proved elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import pytest

from fastchat_serve.engine import (
    Capability,
    ChatPrompt,
    Choice,
    EmbedRequest,
    GenerateRequest,
    Grammar,
    JsonObject,
    JsonSchema,
    Message,
    Regex,
    TextPrompt,
    TokenPrompt,
    ToolSpec,
    required_capabilities,
)
from fastchat_serve.errors import Unsupported
from fastchat_serve.testing.answers import SinkOfAnswer
from fastchat_serve.testing.subject import MODEL, Subject

HELLO = (Message(role="user", content="Hello"),)
TOOL = ToolSpec("get_time")

Ask = Callable[[Subject], GenerateRequest]

NEEDING: Mapping[Capability, Ask] = MappingProxyType(
    {
        Capability.GENERATE: lambda it: it.request(),
        Capability.TEXT_PROMPT: lambda it: it.request(TextPrompt("Hello")),
        Capability.TOKEN_PROMPT: lambda it: it.request(TokenPrompt((1, 2, 3))),
        Capability.CHAT: lambda it: it.request(ChatPrompt(HELLO)),
        Capability.TOOLS: lambda it: it.request(ChatPrompt(HELLO, tools=(TOOL,))),
        Capability.TOOL_CHOICE: lambda it: it.request(ChatPrompt(HELLO, tools=(TOOL,), tool_choice="get_time")),
        Capability.ECHO: lambda it: it.request(echo=True),
        Capability.LOGPROBS: lambda it: it.request(logprobs=0),
        Capability.PROMPT_LOGPROBS: lambda it: it.request(prompt_logprobs=0),
        Capability.TOP_K: lambda it: it.request(top_k=5),
        Capability.MIN_P: lambda it: it.request(min_p=0.1),
        Capability.PENALTIES: lambda it: it.request(presence_penalty=0.5),
        Capability.REPETITION_PENALTY: lambda it: it.request(repetition_penalty=1.1),
        Capability.LOGIT_BIAS: lambda it: it.request(logit_bias={1: 1.0}),
        Capability.MIN_TOKENS: lambda it: it.request(min_tokens=2),
        Capability.STOP_TOKEN_IDS: lambda it: it.request(stop_token_ids=(1,)),
        Capability.IGNORE_EOS: lambda it: it.request(ignore_eos=True),
        Capability.RESUME_GREEDY: lambda it: it.request(resume_token_ids=(1,)),
        Capability.RESUME_SAMPLED: lambda it: it.request(resume_token_ids=(1,), temperature=1.0),
        Capability.JSON_OBJECT: lambda it: it.request(constraint=JsonObject()),
        Capability.JSON_SCHEMA: lambda it: it.request(constraint=JsonSchema({"type": "object"})),
        Capability.REGEX: lambda it: it.request(constraint=Regex("a+")),
        Capability.GRAMMAR: lambda it: it.request(constraint=Grammar('root ::= "a"')),
        Capability.CHOICE: lambda it: it.request(constraint=Choice(("a", "b"))),
        Capability.ADAPTERS: lambda it: it.request(adapter="any"),
    }
)
"""A request for everything that a request can need."""


@pytest.mark.parametrize("capability", NEEDING)
async def test_what_is_not_declared(subject: Subject, capability: Capability) -> None:
    """A request that needs what is not declared is refused with a typed 400, and neither engine nor sink is touched."""
    if subject.can(capability):
        pytest.skip("declared")
    request = NEEDING[capability](subject)
    assert capability in required_capabilities(request)
    sink = SinkOfAnswer(request)
    with pytest.raises(Unsupported) as refused:
        subject.dispatcher.start(MODEL, request, sink)
    assert refused.value.status == 400
    assert (sink.answer.chunks, sink.ends) == ([], [])
    assert subject.busy == 0


async def test_embeddings_that_are_not_declared(subject: Subject) -> None:
    """Embeddings of an engine that makes none are refused with a typed 400."""
    if subject.can(Capability.EMBED):
        pytest.skip("declared")
    with pytest.raises(Unsupported):
        await subject.dispatcher.embed(MODEL, EmbedRequest(id="conformance", inputs=(TextPrompt("Hello"),)))


async def test_a_tokenizer_that_is_not_declared(subject: Subject) -> None:
    """So are tokens of an engine that does not share its tokenizer."""
    if subject.can(Capability.TOKENIZE):
        pytest.skip("declared")
    with pytest.raises(Unsupported):
        await subject.dispatcher.tokenize(MODEL, TextPrompt("Hello"))
    with pytest.raises(Unsupported):
        await subject.dispatcher.detokenize(MODEL, (1, 2))


async def test_what_is_declared_is_served(subject: Subject) -> None:
    """A plain request goes through dispatcher and worker, and has the answer that the engine gives."""
    if not subject.can(Capability.GENERATE):
        pytest.skip("not declared: generate")
    answer = await subject.until(subject.dispatch(subject.request()).ended())
    subject.expect_same(answer.whole(), await subject.greedy(0), "the answer through the server")
    assert subject.worker.protocol_errors == 0
