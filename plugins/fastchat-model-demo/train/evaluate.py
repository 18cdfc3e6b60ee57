"""Score the stored model on what training held out: `python -m train.evaluate`.

One score per skill: the share of conversations whose last message comes out word for word, greedily and once at a
temperature. Phrasings and invented names are held out, the sums are all there are. Writes `scores.json` and the
table of the model card.
"""

import argparse
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, Final

import torch
from rich.console import Console
from torch import Tensor
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from . import sums, tokenizer
from .chat import Conversation, assistant, assistant_text, user
from .corpus import SKILLS, held_out
from .draw import Draw

SEED: Final = 4242
TEMPERATURE: Final = 0.7
ROWS: Final = 25
LONGEST_ANSWER: Final = 720  # tokens; the longest story is a little shorter


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


def every_sum() -> list[Conversation]:
    """All pairs up to 20, in a phrasing that training never sees."""
    pairs = [(a, b) for a in range(sums.LARGEST + 1) for b in range(sums.LARGEST + 1 - a)]
    phrase = sums.PLUS[-1]
    return [Conversation([user(phrase.format(a=a, b=b)), assistant(f"{a} + {b} = {a + b}.")]) for a, b in pairs]


def cases(count: int) -> Iterator[tuple[str, list[Conversation]]]:
    yield "every sum up to 20", every_sum()
    for skill in SKILLS:
        draw = Draw(Random(f"{SEED} {skill}"), held_out=True)
        yield skill, [held_out(skill, draw) for _ in range(count)]


def evaluate(folder: Path, count: int, report: Callable[[str, float, float], None]) -> dict[str, dict[str, float]]:
    torch.manual_seed(SEED)
    judge = Judge(folder)
    scores: dict[str, dict[str, float]] = {}
    for skill, chats in cases(count):
        greedy, sampled = judge.score(chats, 0), judge.score(chats, TEMPERATURE)
        scores[skill] = {"greedy": round(greedy, 3), "sampled": round(sampled, 3), "cases": len(chats)}
        report(skill, greedy, sampled)
    return scores


def as_markdown(scores: dict[str, dict[str, float]]) -> str:
    rows = [
        f"| {skill} | {row['greedy']:.1%} | {row['sampled']:.1%} | {row['cases']} |" for skill, row in scores.items()
    ]
    return "\n".join(["| skill | greedy | temperature 0.7 | cases |", "|---|---|---|---|", *rows])


def into_card(card: Path, table: str) -> None:
    text = card.read_text(encoding="utf-8")
    marked = re.sub(r"(?s)(<!-- scores -->\n).*?(\n<!-- end of scores -->)", lambda m: m[1] + table + m[2], text)
    card.write_text(marked, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=tokenizer.WEIGHTS)
    parser.add_argument("--cases", type=int, default=60, help="per skill")
    arguments = parser.parse_args()
    console = Console()
    scores = evaluate(
        arguments.folder,
        arguments.cases,
        lambda skill, greedy, sampled: console.print(f"{skill:24} {greedy:7.1%} {sampled:7.1%}"),
    )
    (arguments.folder / "scores.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    into_card(arguments.folder / "MODEL_CARD.md", as_markdown(scores))
