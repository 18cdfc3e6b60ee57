"""The real engine on the demonstration model: the whole contract that vLLM's own parts decide about."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from vllm_answers import CAPITAL, Answer, answer, asking, needs_vllm, opened, until

from fastchat_backend_vllm.engine import VllmEngine
from fastchat_serve import (
    Capability,
    ChatPrompt,
    Choice,
    Constraint,
    ContextOverflow,
    EngineError,
    GenerateRequest,
    Grammar,
    InvalidRequest,
    JsonObject,
    JsonSchema,
    Message,
    Regex,
    TextPrompt,
)
from fastchat_serve.testing.answers import read_push

pytestmark = needs_vllm

PROMPTS = ["The capital of", "Once upon a time", "2 + 2 =", "Bonjour, je m'appelle", "日本", "a", "def f(x):", "\n\n"]

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
async def engine(demo: Path) -> AsyncIterator[VllmEngine]:
    async with opened(demo, max_num_seqs=16, chat_template_kwargs={"enable_thinking": "bool"}) as engine:
        yield engine


@pytest.fixture(scope="module")
def generated(demo: Path) -> dict[str, list[int]]:
    """What transformers' `generate()` answers greedily to each of `PROMPTS`, its stop token included."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo)
    model = AutoModelForCausalLM.from_pretrained(demo, dtype=torch.float32)
    answers = {}
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")
        out = model.generate(**ids, do_sample=False, max_new_tokens=32)
        answers[prompt] = [int(token) for token in out[0, ids["input_ids"].shape[1] :]]
    return answers


async def test_greedy_answers_equal_generate(engine: VllmEngine, generated: dict[str, list[int]]) -> None:
    requests = [asking(TextPrompt(prompt), id=prompt, max_tokens=32) for prompt in PROMPTS]

    answers = await asyncio.gather(*(answer(engine, request) for request in requests))

    assert {prompt: found.ids for prompt, found in zip(PROMPTS, answers, strict=True)} == generated


async def test_it_says_what_it_is(engine: VllmEngine) -> None:
    info = engine.info

    assert (info.context_length, info.dtype, info.tool_parser) == (512, "float32", "hermes")
    assert info.sampling.temperature == 0.3
    assert info.fingerprint
    assert {Capability.JSON_SCHEMA, Capability.TOOLS, Capability.RESUME_GREEDY} <= info.capabilities
    assert {Capability.EMBED, Capability.ADAPTERS, Capability.RESUME_SAMPLED}.isdisjoint(info.capabilities)


async def test_usage_counts_the_stop_token(engine: VllmEngine) -> None:
    found = await answer(engine, asking(CAPITAL, max_tokens=40))

    assert found.text == "The capital of France is Paris."
    assert (found.last.finish_reason, found.last.stop_match) == ("stop", 2)
    assert found.last.usage is not None
    assert found.last.usage.completion_tokens == len(found.ids)
    assert found.ids[-1] == 2


async def test_a_stop_string_ends_the_answer_before_it(engine: VllmEngine) -> None:
    found = await answer(engine, asking(CAPITAL, max_tokens=40, stop=("ance is P", "zzz")))

    assert (found.text, found.last.finish_reason, found.last.stop_match) == ("The capital of Fr", "stop", "ance is P")
    await until(lambda: engine.current_load().running == 0)


async def test_logprobs_are_those_before_any_bias(engine: VllmEngine) -> None:
    plain = await answer(engine, asking(CAPITAL, max_tokens=1, logprobs=3))
    (entry,) = plain.chunks[0].logprobs or ()
    assert entry.top[0].token_id == entry.token_id
    assert len(entry.top) == 3

    other = entry.top[2].token_id
    biased = await answer(engine, asking(CAPITAL, max_tokens=1, logprobs=2, logit_bias={other: 100.0}))
    (forced,) = biased.chunks[0].logprobs or ()

    assert forced.token_id == other
    assert forced.logprob == pytest.approx(entry.top[2].logprob, abs=1e-4)
    assert [alternative.token_id for alternative in forced.top] == [a.token_id for a in entry.top[:2]]


async def test_scores_of_the_prompt_come_with_the_first_chunk(engine: VllmEngine) -> None:
    scored = await answer(engine, asking((5, 6, 7, 8), max_tokens=3, prompt_logprobs=1))
    only = await answer(engine, asking((5, 6, 7, 8), max_tokens=0, prompt_logprobs=1))

    echo = scored.chunks[0].prompt
    assert echo is not None
    assert [entry.token_id for entry in echo.logprobs or ()] == [5, 6, 7, 8]
    assert (echo.logprobs or ())[0].logprob is None
    assert all(chunk.prompt is None for chunk in scored.chunks[1:])
    assert only.chunks[0].prompt == echo
    assert (only.ids, only.last.finish_reason) == ([], "length")


@pytest.mark.parametrize("kept", [0, 1, 4, 7, 11, 12, 13])
@pytest.mark.parametrize(
    "fields", [{}, {"frequency_penalty": 0.3}, {"constraint": Regex("The [a-z]+ of [A-Z][a-z]+ is [A-Z][a-z]+[.]")}]
)
async def test_a_resumed_answer_goes_on_as_if_nothing_had_happened(
    engine: VllmEngine, kept: int, fields: dict[str, Any]
) -> None:
    fields = {"max_tokens": 40, "repetition_penalty": 1.05, "stop": ("zzz",), "logprobs": 1} | fields
    whole = await answer(engine, asking(CAPITAL, **fields))
    delivered = "".join(chunk.text for chunk in whole.chunks[:kept])

    rest = await answer(engine, asking(CAPITAL, resume_token_ids=tuple(whole.ids[:kept]), **fields))

    assert len([entry for chunk in rest.chunks for entry in chunk.logprobs or ()]) == len(rest.ids)
    assert whole.ids[:kept] + rest.ids == whole.ids
    assert delivered + rest.text == whole.text
    assert (rest.last.finish_reason, rest.last.stop_match) == (whole.last.finish_reason, whole.last.stop_match)
    assert rest.last.usage is not None
    assert whole.last.usage is not None
    assert rest.last.usage.completion_tokens == whole.last.usage.completion_tokens


async def test_what_cannot_have_been_drawn_here_cannot_be_resumed_under_a_constraint(engine: VllmEngine) -> None:
    with pytest.raises(EngineError, match="other tokens"):
        await answer(engine, asking(CAPITAL, resume_token_ids=(5, 6), constraint=Choice(("yes", "no"))))
    await until(lambda: engine._llm.get_num_unfinished_requests() == 0)


async def test_equal_seeds_draw_equal_answers_and_others_do_not(engine: VllmEngine) -> None:
    def drawn(seed: int) -> Any:
        return answer(engine, asking(TextPrompt("Once"), temperature=1.5, max_tokens=24, seed=seed))

    first, again, other = await drawn(2**64 - 1), await drawn(2**64 - 1), await drawn(7)

    assert first.ids == again.ids != other.ids


async def test_a_tenant_finds_its_own_prompt_in_the_cache_and_no_other_does(engine: VllmEngine) -> None:
    prompt = tuple(range(4, 304))

    async def cached(tenant: str) -> int:
        found = await answer(engine, asking(prompt, max_tokens=1, tenant=tenant))
        assert found.last.usage is not None
        return found.last.usage.cached_tokens

    assert await cached("a") == 0
    assert await cached("a") >= 128
    assert await cached("b") == 0


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "plain"])
async def test_json_under_a_schema_is_valid_a_hundred_times_of_a_hundred(engine: VllmEngine, streamed: bool) -> None:
    slots = asyncio.Semaphore(16)

    async def one(seed: int) -> None:
        request = asking(
            CAPITAL, id=f"s{seed}", temperature=1.0, seed=seed, max_tokens=400, constraint=JsonSchema(SCHEMA)
        )
        async with slots:
            found = await (answer(engine, request) if streamed else pushed(engine, request))
        assert found.last.finish_reason == "stop", found.text
        jsonschema.validate(json.loads(found.text), SCHEMA)

    await asyncio.gather(*map(one, range(100)))


async def pushed(engine: VllmEngine, request: GenerateRequest) -> Answer:
    """The answer by the push form, which plain requests take as well."""
    async with asyncio.timeout(120):
        return (await read_push(engine.start, request)).answer.whole()


@pytest.mark.parametrize(
    ("constraint", "matches"),
    [
        (JsonObject(), lambda text: isinstance(json.loads(text), dict)),
        (Regex("[0-9]{3}-[a-f]{2}"), lambda text: len(text) == 6 and text[:3].isdigit()),
        (Choice(("yes", "no", "maybe")), lambda text: text in {"yes", "no", "maybe"}),
        (Grammar('root ::= ("ab" | "cd")+ "!"'), lambda text: text.endswith("!")),
    ],
    ids=["object", "regex", "choice", "grammar"],
)
async def test_every_kind_of_constraint_is_kept(engine: VllmEngine, constraint: Constraint, matches: Any) -> None:
    for seed in range(5):
        found = await answer(engine, asking(CAPITAL, temperature=1.0, seed=seed, max_tokens=400, constraint=constraint))
        if found.last.finish_reason == "stop":
            assert matches(found.text), found.text


@pytest.mark.parametrize(
    "constraint",
    [
        JsonSchema({"type": "nonsense"}),
        JsonSchema({"type": "integer", "multipleOf": 3}),
        Regex("(("),
        Regex("a\x00"),
        Regex("\ud800"),
        Grammar("root ::= nothing"),
        Grammar(""),
        Choice(("\ud800",)),
    ],
    ids=lambda constraint: type(constraint).__name__,
)
async def test_an_invalid_constraint_is_refused_and_hurts_nobody(engine: VllmEngine, constraint: Constraint) -> None:
    other = asyncio.create_task(answer(engine, asking(id="other", max_tokens=50, ignore_eos=True)))

    with pytest.raises(InvalidRequest) as refusal:
        await answer(engine, asking(constraint=constraint))

    assert "/" not in str(refusal.value)
    assert len((await other).ids) == 50


async def test_a_request_over_the_context_is_refused_with_the_counts(engine: VllmEngine) -> None:
    with pytest.raises(ContextOverflow, match=r"512.*600"):
        await answer(engine, asking([5] * 500, max_tokens=100))
    with pytest.raises(ContextOverflow):
        await answer(engine, asking(TextPrompt("a " * 100_000)))


@pytest.mark.parametrize(
    "fields",
    [{"logit_bias": {2048: 1.0}}, {"stop_token_ids": (-1,)}, {"prompt": (2048,)}, {"logprobs": 10_000}],
    ids=lambda fields: next(iter(fields)),
)
async def test_what_is_out_of_range_is_refused(engine: VllmEngine, fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        await answer(engine, asking(**fields))


async def test_leaving_a_stream_early_frees_its_slot_at_once(engine: VllmEngine) -> None:
    for tokens in (1, 2, 7, 20):
        stream = engine.generate_stream(asking(max_tokens=400, ignore_eos=True))
        for _ in range(tokens):
            await anext(stream)
        async with asyncio.timeout(1):
            await stream.aclose()
        assert engine.current_load().running == 0
        assert engine._llm.get_num_unfinished_requests() == 0


async def test_a_hundred_aborts_at_any_moment_leave_nothing_behind(engine: VllmEngine) -> None:
    class Nowhere:
        def push(self, chunk: Any) -> None: ...

        def __init__(self) -> None:
            self.ends = 0

        def end(self, error: Exception | None) -> None:
            assert error is None
            self.ends += 1

    sinks = [Nowhere() for _ in range(100)]
    for number, sink in enumerate(sinks):
        handle = engine.start(asking(id=f"a{number}", max_tokens=400, ignore_eos=True), sink)
        await asyncio.sleep(0.0005 * (number % 8))
        handle.abort()
        handle.abort()
    await until(lambda: all(sink.ends for sink in sinks))

    assert [sink.ends for sink in sinks] == [1] * 100
    await until(lambda: engine._llm.get_num_unfinished_requests() == 0)
    assert (engine.current_load().running, engine.current_load().waiting) == (0, 0)


async def test_template_options_are_those_that_the_config_allows(engine: VllmEngine) -> None:
    messages = (Message(role="user", content="Hi"),)

    await engine.render(ChatPrompt(messages, template_options={"enable_thinking": False}))
    with pytest.raises(InvalidRequest, match="enable_thinking"):
        await engine.render(ChatPrompt(messages, template_options={"other": 1}))


async def test_tokenizing_and_detokenizing_are_inverse(engine: VllmEngine) -> None:
    text = await engine.render(CAPITAL)
    ids = await engine.tokenize(CAPITAL)

    assert await engine.detokenize(ids) == text


async def test_the_load_counts_answers_and_their_tokens(engine: VllmEngine) -> None:
    stream = engine.generate_stream(asking(range(4, 204), max_tokens=100, ignore_eos=True))
    await anext(stream)
    load = engine.current_load()
    await stream.aclose()

    assert load.running == 1
    assert 0 < load.kv_used_fraction < 1
    assert math.isclose(engine.current_load().kv_used_fraction, 0)
