"""What transformers' own ``generate()`` answers, greedily: the reference that every engine is compared with.

``python -m tests.parity.reference`` writes `greedy_ids.json` anew; it needs torch and transformers, as reading it
does not. The engines come in environments that exclude each other, so each is compared with the file.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

__all__ = ["MAX_TOKENS", "PROMPTS", "Answers", "first_difference", "generated", "recorded", "weights"]

Answers = list[list[int]]

MAX_TOKENS = 40
LEAST_MARGIN = 1e-3
"""Between the best two logits of every position; with less, a comparison would be one of rounding."""

PROMPTS = (
    "Hello!",
    "What is fastchat-serve?",
    "My name is Ada. What is my name?",
    "Repeat after me: the quick brown fox",
    "What is 7 plus 8?",
    "Count from one to ten.",
    "Guten Morgen!",
    "Bonjour, comment vas-tu ?",
    "你好！",
    "Tell me a story about a lighthouse.",
    "Say: naïve café 🙂",
    "Which policies does the dispatcher know?",
)
FILE = Path(__file__).with_name("greedy_ids.json")


def weights() -> Path:
    """The folder of the demonstration model."""
    return Path(str(files("fastchat_model_demo") / "weights"))


def recorded() -> tuple[Answers, Answers]:
    """Prompts and answers of `FILE`, as token ids."""
    content = json.loads(FILE.read_text(encoding="utf-8"))
    return content["prompts"], content["answers"]


def generated() -> tuple[Answers, Answers]:
    """Prompts and answers by ``generate()`` in float32, one at a time."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(weights())
    model: Any = AutoModelForCausalLM.from_pretrained(weights(), dtype=torch.float32).eval()
    prompts, answers = [], []
    for said in PROMPTS:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": said}], add_generation_prompt=True, return_dict=False
        )
        with torch.inference_mode():
            out = model.generate(
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                do_sample=False,
                max_new_tokens=MAX_TOKENS,
                output_logits=True,
                return_dict_in_generate=True,
            )
        best = torch.cat(out.logits).topk(2).values
        margin = (best[:, 0] - best[:, 1]).min().item()
        assert margin > LEAST_MARGIN, f"{said!r} is no good prompt: its answer hangs on {margin:.1e}"
        prompts.append(list(ids))
        answers.append(out.sequences[0, len(ids) :].tolist())
    return prompts, answers


def first_difference(expected: Answers, found: Answers) -> str:
    """Where two lists of answers part, in words; empty if they do not."""
    for number, (wanted, got) in enumerate(zip(expected, found, strict=True)):
        if wanted != got:
            place = next((i for i, pair in enumerate(zip(wanted, got, strict=False)) if pair[0] != pair[1]), None)
            where = min(len(wanted), len(got)) if place is None else place
            return (
                f"answer {number} ({PROMPTS[number]!r}) differs first at token {where}: "
                f"expected …{wanted[max(where - 3, 0) : where + 5]}, found …{got[max(where - 3, 0) : where + 5]}"
            )
    return ""


if __name__ == "__main__":
    made = dict(zip(("prompts", "answers"), generated(), strict=True))
    FILE.write_text(json.dumps(made, indent=None, separators=(",", ":")) + "\n", encoding="utf-8")
