"""How a request is put to SGLang."""

from __future__ import annotations

from sglang_answers import asking

from fastchat_backend_sglang.sampling import RESUMED, sampling_params
from fastchat_serve import JsonObject


def test_every_field_has_its_counterpart() -> None:
    request = asking(
        temperature=0.7,
        top_p=0.9,
        top_k=40,
        min_p=0.05,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=0.3,
        logit_bias={7: -100.0},
        min_tokens=2,
        stop_token_ids=(9,),
        constraint=JsonObject(),
    )

    params = sampling_params(request, 20, seeded=False)

    assert params == {
        "max_new_tokens": 20,
        "min_new_tokens": 2,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "stop_token_ids": [9],
        "ignore_eos": False,
        "skip_special_tokens": False,
        "logit_bias": {"7": -100.0},
        "json_schema": '{"type": "object"}',
    }


def test_stop_strings_are_not_sent_along() -> None:
    assert "stop" not in sampling_params(asking(stop=("\n",)), 20, seeded=False)


def test_no_top_p_means_the_most_likely_token() -> None:
    params = sampling_params(asking(temperature=1.0, top_p=0.0), 20, seeded=False)
    assert (params["top_p"], params["top_k"]) == (1.0, 1)


def test_the_minimum_counts_what_is_resumed() -> None:
    params = sampling_params(asking(min_tokens=5, resume_token_ids=(1, 2, 3)), 20, seeded=False)
    assert (params["min_new_tokens"], params["custom_params"]) == (2, {RESUMED: 3})


def test_the_minimum_is_nothing_where_no_token_ends_an_answer() -> None:
    assert sampling_params(asking(min_tokens=5, ignore_eos=True), 20, seeded=False)["min_new_tokens"] == 0


def test_seeds_are_told_only_where_they_hold_and_fit_64_bits() -> None:
    assert "sampling_seed" not in sampling_params(asking(seed=1), 20, seeded=False)
    assert sampling_params(asking(seed=2**64 - 1), 20, seeded=True)["sampling_seed"] == -1
