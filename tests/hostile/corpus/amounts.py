"""S8: too many, too long, too much at once."""

from __future__ import annotations

from tests.hostile.case import Case, chat, complete, embed

__all__ = ["CASES"]

USER = {"role": "user", "content": "x"}
TOOL = {"type": "function", "function": {"name": "f"}}

CASES = {
    "n of a million": Case(400, chat(n=10**6), "n"),
    "n one over the limit": Case(400, chat(n=129), "n"),
    "n at the limit, but more than can be held": Case(400, chat(n=128), "n"),
    "n of a million, streamed": Case(400, chat(n=10**6, stream=True), "n"),
    "n of a million completions": Case(400, complete(n=10**6), "n"),
    "n times prompts over the limit": Case(400, complete(n=100, prompt=["x"] * 100), "n"),
    "best_of a million": Case(400, complete(best_of=10**6), "best_of"),
    "best_of without n": Case(400, complete(best_of=2), "best_of"),
    "max_tokens of two thousand million": Case(400, chat(max_tokens=2**31 - 1), "messages"),
    "max_completion_tokens of two thousand million": Case(400, chat(max_completion_tokens=2**31 - 1), "messages"),
    "max_tokens of two thousand million for a completion": Case(400, complete(max_tokens=2**31 - 1), "prompt"),
    "no token at all": Case(400, complete(max_tokens=0), "max_tokens"),
    "more least than most tokens": Case(400, chat(min_tokens=9, max_tokens=8), "min_tokens"),
    "both of two thousand million": Case(400, chat(min_tokens=2**31 - 1, max_tokens=2**31 - 1), "messages"),
    "21 alternatives": Case(400, chat(logprobs=True, top_logprobs=21), "top_logprobs"),
    "a million alternatives": Case(400, chat(logprobs=True, top_logprobs=10**6), "top_logprobs"),
    "alternatives without probabilities": Case(400, chat(top_logprobs=1), "top_logprobs"),
    "a million alternatives of a completion": Case(400, complete(logprobs=10**6), "logprobs"),
    "17 stop strings": Case(400, chat(stop=["x"] * 17), "stop"),
    "10 000 stop strings": Case(400, chat(stop=[str(i) for i in range(10_000)]), "stop"),
    "a stop string of 1 MB": Case(400, chat(stop="x" * 1_000_000), "stop"),
    "a stop string one over the limit": Case(400, chat(stop="x" * 1025), "stop"),
    "an empty stop string": Case(400, chat(stop=""), "stop"),
    "an empty stop string among others": Case(400, chat(stop=["x", ""]), "stop"),
    "10 000 stop tokens": Case(400, chat(stop_token_ids=list(range(10_000))), "stop_token_ids"),
    "100 000 biases": Case(400, chat(logit_bias={str(i): 1 for i in range(100_000)}), "logit_bias"),
    "a bias for no token": Case(400, chat(logit_bias={"x": 1}), "logit_bias"),
    "a bias for a token below 0": Case(400, chat(logit_bias={"-1": 1}), "logit_bias"),
    "a bias for a token of 30 digits": Case(400, chat(logit_bias={"9" * 30: 1}), "logit_bias"),
    "a bias for an empty token": Case(400, chat(logit_bias={"": 1}), "logit_bias"),
    "a bias for token 1e3": Case(400, chat(logit_bias={"1e3": 1}), "logit_bias"),
    "a bias for token 1_0": Case(400, chat(logit_bias={"1_0": 1}), "logit_bias"),
    "a bias for an Arabic digit": Case(400, chat(logit_bias={"١": 1}), "logit_bias"),
    "10 000 messages": Case(400, chat(messages=[USER] * 10_000), "messages"),
    "one message too many": Case(400, chat(messages=[USER] * 4097), "messages"),
    "no message": Case(400, chat(messages=[]), "messages"),
    "129 tools": Case(400, chat(tools=[TOOL] * 129), "tools"),
    "10 000 tools": Case(400, chat(tools=[TOOL] * 10_000), "tools"),
    "2049 prompts": Case(400, complete(prompt=["x"] * 2049), "prompt"),
    "100 prompts, more than can be held": Case(400, complete(prompt=["x"] * 100), "n"),
    "50 000 prompts of nothing": Case(400, complete(prompt=[""] * 50_000), "prompt"),
    "50 000 inputs": Case(400, embed(input=["x"] * 50_000), "input"),
    "dimensions of two thousand million": Case(400, embed(dimensions=2**31 - 1), "dimensions"),
    "10 000 modalities": Case(400, chat(modalities=["text", *(str(i) for i in range(10_000))]), "modalities"),
    "a choice of 50 000": Case(400, chat(structured_outputs={"choice": [str(i) for i in range(50_000)]})),
    "a choice of nothing": Case(400, chat(structured_outputs={"choice": []})),
    "a model of 100 000 characters": Case(404, chat(model="x" * 100_000), "model"),
    "a user of 100 000 characters": Case(200, chat(user="x" * 100_000)),
    "a name of 100 000 characters": Case(200, chat(messages=[USER | {"name": "x" * 100_000}])),
    "a prompt of 1 MB": Case((200, 400), complete(prompt="x" * 1_000_000)),
    "a prompt of 200 000 words": Case(400, complete(prompt="x " * 200_000), "prompt"),
    "a conversation of 200 000 words": Case(400, chat(messages=[USER | {"content": "x " * 200_000}]), "messages"),
    "200 000 tokens": Case((200, 400), complete(prompt=[120] * 200_000)),
    "an input of 200 000 words": Case(400, embed(input="x " * 200_000), "input"),
    "a million spaces": Case((200, 400), complete(prompt=" " * 1_000_000)),
}
