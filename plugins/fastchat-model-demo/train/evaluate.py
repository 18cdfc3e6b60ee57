"""Score the stored model on what training held out: `python -m train.evaluate`.

A score is the share of conversations whose last message comes out word for word: in wordings that were taught,
greedily and at a temperature, and in wordings that training never saw. Writes `scores.json` and the table of the
model card.
"""

import argparse
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any, Final

import torch
from torch import Tensor
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from . import sums, tokenizer
from .chat import Conversation, assistant, assistant_text, user
from .corpus import SKILLS, held_out
from .draw import Draw

SEED: Final = 4242
TEMPERATURE: Final = 0.7
EVERY_SUM: Final = "every sum up to 20"
ROWS: Final = 25
LONGEST_ANSWER: Final = 720  # tokens; the longest story is a little shorter


Scores = dict[str, dict[str, float]]


class Judge:
    """The stored model, answering batches of conversations."""

    def __init__(self, folder: Path) -> None:
        self.tokens: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(folder)
        self.model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def answers(self, asked: Sequence[Conversation], temperature: float) -> list[str]:
        prompts = [
            self.tokens.apply_chat_template(
                list(chat.messages), tools=list(chat.tools) or None, add_generation_prompt=True, tokenize=False
            )
            for chat in asked
        ]
        inputs = self.tokens(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        choice: dict[str, Any] = (
            {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
        )
        made: Tensor = self.model.generate(**inputs, **choice, max_new_tokens=LONGEST_ANSWER)
        answers = made[:, inputs["input_ids"].shape[1] :]
        return [str(self.tokens.decode(row, skip_special_tokens=True)) for row in answers]

    def score(self, chats: Sequence[Conversation], temperature: float) -> float:
        right = 0
        for first in range(0, len(chats), ROWS):
            rows = chats[first : first + ROWS]
            made = self.answers([chat._replace(messages=chat.messages[:-1]) for chat in rows], temperature)
            right += sum(text == assistant_text(chat.messages[-1]) for text, chat in zip(made, rows, strict=True))
        return right / len(chats)


def every_sum(wording: str) -> list[Conversation]:
    pairs = [(a, b) for a in range(sums.LARGEST + 1) for b in range(sums.LARGEST + 1 - a)]
    return [Conversation([user(wording.format(a=a, b=b)), assistant(f"{a} + {b} = {a + b}.")]) for a, b in pairs]


def cases(skill: str, count: int, *, unseen: bool) -> list[Conversation]:
    """Fresh ones: invented names and words are new either way, the wording only if `unseen`."""
    if skill == EVERY_SUM:
        return every_sum(sums.PLUS[-1 if unseen else 0])
    draw = Draw(Random(f"{SEED} {skill}"), held_out=unseen)
    return [held_out(skill, draw) for _ in range(count)]


def evaluate(folder: Path, count: int, report: Callable[[str], None]) -> Scores:
    torch.manual_seed(SEED)
    judge = Judge(folder)
    scores: Scores = {}
    for skill in (EVERY_SUM, *SKILLS):
        taught, unseen = (cases(skill, count, unseen=choice) for choice in (False, True))
        scores[skill] = {
            "taught": round(judge.score(taught, 0), 3),
            "taught, sampled": round(judge.score(taught, TEMPERATURE), 3),
            "unseen": round(judge.score(unseen, 0), 3),
            "cases": len(taught),
        }
        row = scores[skill]
        report(f"{skill:22} {row['taught']:7.1%} {row['taught, sampled']:7.1%} {row['unseen']:7.1%}")
    return scores


def as_markdown(scores: Scores) -> str:
    head = f"| skill | taught wording | at temperature {TEMPERATURE} | unseen wording | cases |\n|---|---|---|---|---|"
    rows = (
        f"| {skill} | {row['taught']:.1%} | {row['taught, sampled']:.1%} | {row['unseen']:.1%} | {row['cases']} |"
        for skill, row in scores.items()
    )
    return "\n".join([head, *rows])


def into_card(card: Path, table: str) -> None:
    text = card.read_text(encoding="utf-8")
    marked = re.sub(r"(?s)(<!-- scores -->\n).*?(\n<!-- end of scores -->)", lambda m: m[1] + table + m[2], text)
    card.write_text(marked, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=tokenizer.WEIGHTS)
    parser.add_argument("--cases", type=int, default=60, help="per skill")
    arguments = parser.parse_args()
    scores = evaluate(arguments.folder, arguments.cases, print)
    (arguments.folder / "scores.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    into_card(arguments.folder / "MODEL_CARD.md", as_markdown(scores))
