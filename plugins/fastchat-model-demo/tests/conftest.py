"""The stored model, loaded once; without torch there is nothing here to test."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402

from fastchat_model_demo import WEIGHTS  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1]))  # `train` is no part of the wheel

Ask = Callable[..., str]


@pytest.fixture(scope="session")
def tokens() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(WEIGHTS)


@pytest.fixture(scope="session")
def model() -> LlamaForCausalLM:
    torch.set_num_threads(1)
    return LlamaForCausalLM.from_pretrained(WEIGHTS, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def ask(model: LlamaForCausalLM, tokens: PreTrainedTokenizerFast) -> Ask:
    """The greedy answer to user and assistant turns given in turn."""

    def answer(*turns: str, tools: list[dict[str, object]] | None = None, most: int = 120) -> str:
        roles = ("user", "assistant")
        messages = [{"role": roles[index % 2], "content": turn} for index, turn in enumerate(turns)]
        prompt = tokens.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False)
        ids = tokens(prompt, return_tensors="pt")
        made = model.generate(**ids, do_sample=False, max_new_tokens=most)
        return str(tokens.decode(made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))

    return answer
