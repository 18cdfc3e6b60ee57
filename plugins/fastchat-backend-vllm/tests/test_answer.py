"""vLLM's outputs as chunks. Needs no vLLM."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer
from vllm_answers import asking

from fastchat_backend_vllm.answer import Answer
from fastchat_serve import EngineError, GenerateRequest, InvalidRequest, JsonObject
from fastchat_serve.text import AnswerText, TokenizerVocabulary, Vocabulary

END = 2


@pytest.fixture(scope="module")
def vocabulary(demo: Path) -> Vocabulary:
    return TokenizerVocabulary(Tokenizer.from_file(str(demo / "tokenizer.json")), 2048)


def begun(vocabulary: Vocabulary, request: GenerateRequest) -> Answer:
    text = AnswerText(vocabulary.detokenizer(), stops=request.sampling.stop)
    return Answer(
        request,
        vocabulary,
        prompt=(5, 6),
        text=text,
        limit=request.sampling.max_tokens or 99,
        end_ids=frozenset({END}),
        echo=None,
        replayed=False,
    )


def output(ids: list[int], finish_reason: str | None = None, stop_reason: int | None = None) -> Any:
    new = SimpleNamespace(token_ids=ids, logprobs=None, finish_reason=finish_reason, stop_reason=stop_reason)
    return SimpleNamespace(outputs=[new], num_cached_tokens=0, prompt_logprobs=None, finished=finish_reason is not None)


def test_tokens_drawn_after_a_stop_string_are_nobodys(vocabulary: Vocabulary) -> None:
    ids = vocabulary.encode("The capital of France is Paris.", special=True)
    answer = begun(vocabulary, asking(stop=("capital",), max_tokens=40))

    chunk = answer.take(output([*ids, END], "stop"))

    assert chunk is not None
    assert (chunk.text, chunk.finish_reason, chunk.stop_match) == ("The ", "stop", "capital")
    assert chunk.usage is not None
    assert chunk.usage.completion_tokens == len(chunk.token_ids) < len(ids)


def test_the_stop_token_is_counted_and_told_and_not_in_the_text(vocabulary: Vocabulary) -> None:
    chunk = begun(vocabulary, asking(max_tokens=40)).take(output([354, END], "stop"))

    assert chunk is not None
    assert (chunk.text, chunk.token_ids, chunk.stop_match) == ("The", (354, END), END)


def test_a_stop_token_that_is_ignored_does_not_end_the_answer(vocabulary: Vocabulary) -> None:
    chunk = begun(vocabulary, asking(max_tokens=40, ignore_eos=True)).take(output([354, END]))

    assert chunk is not None
    assert chunk.finish_reason is None


def test_an_answer_that_vllm_gives_up_is_an_engine_error(vocabulary: Vocabulary) -> None:
    with pytest.raises(EngineError):
        begun(vocabulary, asking()).take(output([], "abort"))


def test_a_constraint_that_does_not_compile_is_the_clients_fault(vocabulary: Vocabulary) -> None:
    with pytest.raises(InvalidRequest):
        begun(vocabulary, asking(constraint=JsonObject())).take(output([], "error"))
