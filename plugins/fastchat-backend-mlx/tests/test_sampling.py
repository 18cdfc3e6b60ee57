"""How a token is drawn, against the same steps written out in numpy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("mlx_lm", reason="mlx is not installed here")

import mlx.core as mx
import numpy as np
from mlx_answers import WEIGHTS
from numpy.typing import NDArray
from tokenizers import Tokenizer

from fastchat_backend_mlx.sampling import Drawing
from fastchat_serve import GenerateRequest, SamplingParams, TokenPrompt, uniform
from fastchat_serve.stepping import Answer
from fastchat_serve.text import AnswerText, Detokenizer

VOCABULARY = 200
PROMPT = (5, 6, 6, 190)
DRAWN = (7, 6, 7, 7)
END = 11

EVERYTHING: dict[str, Any] = {
    "temperature": 0.8,
    "top_k": 30,
    "top_p": 0.9,
    "min_p": 0.02,
    "repetition_penalty": 1.4,
    "presence_penalty": 0.6,
    "frequency_penalty": 0.3,
    "logit_bias": {3: 4.0, 9: -2.0},
    "min_tokens": 6,
}

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "cold": {"temperature": 1e-9},
    "hot": {"temperature": 5.0},
    "top-k": {"top_k": 5},
    "top-k over the vocabulary": {"top_k": 5000},
    "top-p": {"top_p": 0.6},
    "top-p of nothing": {"top_p": 0.0},
    "top-k, then top-p": {"top_k": 10, "top_p": 0.7},
    "min-p": {"min_p": 0.3},
    "repetition": {"repetition_penalty": 1.8},
    "use": {"presence_penalty": 1.5, "frequency_penalty": 0.7},
    "bias": {"logit_bias": {0: 8.0, 199: 7.0}},
    "min-tokens": {"min_tokens": 5},
    "everything": EVERYTHING,
}


def drawing_for(params: SamplingParams) -> Drawing:
    """Of an answer that has drawn `DRAWN`."""
    request = GenerateRequest(id="r", prompt=TokenPrompt(PROMPT), sampling=params, resume_token_ids=DRAWN, logprobs=1)
    return Drawing(
        Answer(
            request=request,
            stream=SimpleNamespace(aborted=False),
            prompt=PROMPT,
            text=AnswerText(Detokenizer(Tokenizer.from_file(str(WEIGHTS / "tokenizer.json")))),
            limit=100,
            order=(0, 0),
            deadline=None,
            stop_ids=frozenset([END]),
            constraint=None,
            mask=None,
            echo=None,
        )
    )


def drawn_by_mlx(params: SamplingParams, logits: NDArray[np.float32]) -> int:
    drawing = drawing_for(params)
    changed, tokens = mx.array(logits)[None], mx.array([*PROMPT, *DRAWN])
    for processor in drawing.processors():
        changed = processor(tokens, changed)
    token: int = drawing.sampler()(changed - mx.logsumexp(changed, axis=-1, keepdims=True)).item()
    return token


def drawn_by_hand(params: SamplingParams, logits: NDArray[np.float32]) -> int:
    logits = logits.astype(np.float64)
    for token, bias in (params.logit_bias or {}).items():
        logits[token] += bias
    for token in {*PROMPT, *DRAWN}:
        factor = params.repetition_penalty
        logits[token] = logits[token] / factor if logits[token] > 0 else logits[token] * factor
    for token in set(DRAWN):
        logits[token] -= params.presence_penalty + params.frequency_penalty * DRAWN.count(token)
    if len(DRAWN) < params.min_tokens:
        logits[END] = -np.inf
    weights = np.exp((logits - logits.max()) / max(params.temperature, 1e-6))
    best_first = np.argsort(-weights, kind="stable")
    kept = best_first[: params.top_k or VOCABULARY]
    if params.top_p < 1:
        before = np.cumsum(weights[kept]) - weights[kept]
        kept = kept[: max(int((before < params.top_p * weights[kept].sum()).sum()), 1)]
    kept = kept[weights[kept] >= params.min_p]
    left = np.zeros_like(weights)
    left[kept] = weights[kept]
    aim = uniform(params.seed, len(DRAWN)) * left.sum()
    return int(np.searchsorted(np.cumsum(left), aim, side="right"))


@pytest.mark.parametrize("case", CASES)
def test_the_steps_come_in_the_contracts_order(case: str) -> None:
    random = np.random.default_rng(1)
    for seed in range(30):
        logits = random.normal(0, 2, VOCABULARY).astype(np.float32)
        params = SamplingParams(seed=seed, **CASES[case])
        assert drawn_by_mlx(params, logits) == drawn_by_hand(params, logits)


def test_greedy_takes_the_lowest_id_in_a_tie_and_honours_penalties() -> None:
    logits = np.zeros(VOCABULARY, dtype=np.float32)
    logits[[7, 50, 60]] = 3

    assert drawn_by_mlx(SamplingParams(temperature=0), logits) == 7
    assert drawn_by_mlx(SamplingParams(temperature=0, presence_penalty=0.1), logits) == 50


def test_draws_follow_the_distribution() -> None:
    chances = np.array([0.5, 0.3, 0.15, 0.05])
    logits = np.full(VOCABULARY, -np.inf, dtype=np.float32)
    logits[[0, 80, 150, 199]] = np.log(chances)
    draws = [drawn_by_mlx(SamplingParams(seed=seed), logits) for seed in range(2000)]

    found = np.array([draws.count(token) for token in (0, 80, 150, 199)]) / len(draws)
    assert np.abs(found - chances).max() < 0.04


def test_what_is_reported_is_what_the_model_said() -> None:
    logits = np.random.default_rng(2).normal(0, 2, VOCABULARY).astype(np.float32)
    drawing = drawing_for(SamplingParams(**EVERYTHING))
    changed = mx.array(logits)[None]
    for processor in drawing.processors():
        changed = processor(mx.array([*PROMPT, *DRAWN]), changed)

    expected = logits - np.log(np.exp(logits.astype(np.float64)).sum())
    assert np.allclose(drawing.raw_logprobs(changed[0]), expected, atol=1e-5)
