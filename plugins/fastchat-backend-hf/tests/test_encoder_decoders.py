"""Encoder-decoders: the encoder reads the prompt once, and the answer begins on its own in the decoder."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
import tiny_models
import torch
from hf_answers import Opened, answer, asking, until
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from fastchat_serve import Capability, ContextOverflow, TextPrompt, Usage

pytestmark = pytest.mark.anyio

MODELS = ["t5", "bart", "mbart", "marian"]


def prompts(count: int, longest: int = 30) -> list[list[int]]:
    rng = random.Random(count)
    return [[rng.randrange(10, 1000) for _ in range(rng.randint(3, longest))] for _ in range(count)]


def forced(model: PreTrainedModel) -> list[int]:
    """What the decoder reads before the answer."""
    config = model.generation_config
    return [config.decoder_start_token_id, *filter(None, [config.forced_bos_token_id])]


def greedy(model: PreTrainedModel, prompt: list[int], tokens: int) -> list[int]:
    """The answer of transformers' own ``generate``."""
    before = forced(model)
    found = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt)),
        do_sample=False,
        num_beams=1,
        max_new_tokens=tokens + len(before) - 1,
        eos_token_id=None,
    )
    assert found[0, : len(before)].tolist() == before
    answered: list[int] = found[0, len(before) :].tolist()
    return answered


@pytest.mark.parametrize("model", MODELS)
async def test_many_streams_at_once_answer_as_each_alone(opened: Opened, model: str) -> None:
    reference = getattr(tiny_models, model)()
    asked = prompts(8)
    async with opened(model, max_batch=4) as engine:
        assert any("encoder-decoder" in note for note in engine.info.notes)
        assert not {Capability.PROMPT_LOGPROBS, Capability.EMBED} & engine.info.capabilities
        got = await asyncio.gather(
            *(
                answer(engine, asking(prompt, id=str(i), max_tokens=8 + i, ignore_eos=True))
                for i, prompt in enumerate(asked)
            )
        )
    for i, (prompt, one) in enumerate(zip(asked, got, strict=True)):
        assert one.ids == greedy(reference, prompt, 8 + i)
        assert one.last.usage == Usage(len(prompt), 8 + i)
        assert one.last.finish_reason == "length"


@pytest.mark.parametrize("model", MODELS)
async def test_log_probabilities_are_those_of_the_decoder(opened: Opened, model: str) -> None:
    reference = getattr(tiny_models, model)()
    prompt = prompts(1)[0]
    async with opened(model) as engine:
        got = await answer(engine, asking(prompt, max_tokens=6, ignore_eos=True, logprobs=2))
    before = forced(reference)
    with torch.inference_mode():
        decoded = torch.tensor([before + got.ids])
        logits = reference(input_ids=torch.tensor([prompt]), decoder_input_ids=decoded).logits[0].log_softmax(-1)
    for place, chunk in enumerate(got.chunks, len(before) - 1):
        (told,) = chunk.logprobs or ()
        assert told.logprob == pytest.approx(logits[place, told.token_id].item(), abs=1e-3)
        best = logits[place].topk(2)
        assert [one.token_id for one in told.top] == best.indices.tolist()
        assert [one.logprob for one in told.top] == pytest.approx(best.values.tolist(), abs=1e-3)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("model", MODELS)
async def test_an_answer_is_resumed_after_any_of_its_tokens(opened: Opened, model: str, temperature: float) -> None:
    settings = {"max_tokens": 6, "ignore_eos": True, "temperature": temperature, "seed": 11}
    async with opened(model) as engine:
        whole = await answer(engine, asking(prompts(1)[0], **settings))
        for told in range(1, 6):
            resumed = await answer(engine, asking(prompts(1)[0], resume_token_ids=tuple(whole.ids[:told]), **settings))
            assert resumed.ids == whole.ids[told:]
            assert resumed.last.usage == whole.last.usage


@pytest.mark.parametrize("model", ["t5", "bart"])
async def test_answers_stop_where_they_are_told_to(opened: Opened, model: str) -> None:
    prompt = prompts(1)[0]
    async with opened(model) as engine:
        whole = await answer(engine, asking(prompt, max_tokens=12, ignore_eos=True))
        third = whole.ids[2]
        cut = await answer(engine, asking(prompt, max_tokens=12, ignore_eos=True, stop_token_ids=(third,)))
        text = "".join(chunk.text for chunk in whole.chunks)
        stop = text[4:7]
        ended = await answer(engine, asking(prompt, max_tokens=12, ignore_eos=True, stop=(stop,)))
    assert cut.ids == whole.ids[: whole.ids.index(third) + 1]
    assert (cut.last.finish_reason, cut.last.stop_match) == ("stop", third)
    assert ended.text == text[: text.index(stop)]
    assert (ended.last.finish_reason, ended.last.stop_match) == ("stop", stop)


async def test_a_stream_that_is_left_early_leaves_the_others_alone(opened: Opened) -> None:
    asked = prompts(3)
    async with opened("t5") as engine:
        well = [await answer(engine, asking(prompt, max_tokens=20, ignore_eos=True)) for prompt in asked]
        left = engine.generate_stream(asking(asked[0], id="left", max_tokens=200, ignore_eos=True))
        await anext(left)
        others = [asyncio.create_task(answer(engine, asking(p, max_tokens=20, ignore_eos=True))) for p in asked[1:]]
        await left.aclose()
        assert [(await other).ids for other in others] == [one.ids for one in well[1:]]
        await until(lambda: engine.current_load().running == 0)
        assert engine.current_load().kv_used_fraction == 0


async def test_prompt_and_answer_have_the_context_together(opened: Opened) -> None:
    async with opened("bart", context_length=40) as engine:
        whole = await answer(engine, asking(range(10, 40), max_tokens=None, ignore_eos=True))
        assert len(whole.ids) == 10
        with pytest.raises(ContextOverflow):
            await answer(engine, asking(range(10, 51), max_tokens=1))


@pytest.fixture
def spm_folder(tmp_path: Path) -> Path:
    """A T5 with a tokenizer like its own: spaces belong to the words after them, and prompts end in ``</s>``."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    text = [" ".join(f"{word}{number}" for word in ("to", "be", "or", "not", "that")) for number in range(200)]
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    tokenizer.train_from_iterator(
        text, trainers.UnigramTrainer(vocab_size=400, special_tokens=special, unk_token="<unk>")
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")
    return tiny_models.save_model(tmp_path / "t5", tiny_models.t5(), fast)


async def test_text_is_that_of_the_answer_alone(opened: Opened, spm_folder: Path) -> None:
    """An answer's first word does not go on from the prompt, so it has no space before it."""
    fast = PreTrainedTokenizerFast.from_pretrained(spm_folder)
    async with opened(spm_folder) as engine:
        assert await engine.tokenize(TextPrompt("to1 be2")) == tuple(fast("to1 be2").input_ids)
        assert fast("to1 be2").input_ids[-1] == 2
        words = [token for token in range(4, len(fast)) if fast.convert_ids_to_tokens(token).startswith("▁")]
        bias = dict.fromkeys(words, 100.0)
        got = await answer(engine, asking(TextPrompt("to1 be2"), max_tokens=6, ignore_eos=True, logit_bias=bias))
    assert got.text == fast.decode(got.ids)
    assert got.text
    assert not got.text.startswith(" ")
