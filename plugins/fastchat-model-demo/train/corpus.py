"""The corpus: every skill in its share, alone, in longer talks, beside tools, and as plain text.

`skills` names what `evaluate` scores; `conversation` and `document` are what `train` learns from. Nothing is read
from disk, and the same seed always gives the same corpus.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from . import copying, facts, greetings, memory, smalltalk, stories, sums, tools
from .chat import Conversation, Message, Piece, render
from .draw import Draw

Exchange = Callable[[Draw], list[Message]]

SYSTEMS: Final = (
    "You are a helpful assistant.", "You are a friendly assistant.", "Be brief.", "Answer politely.",
    "You are a helpful, honest assistant.", "You are the demo of fastchat-serve.", "You are ChatGPT.",
    "Answer in one sentence.",
)  # fmt: skip

EXCHANGES: Final[Mapping[str, tuple[Exchange, float]]] = {
    "greetings": (greetings.greeting, 2.0),
    "sums": (sums.addition, 3.2),
    "running sums": (sums.running_sum, 1.2),
    "differences": (sums.difference, 1.2),
    "products": (sums.product, 0.7),
    "sums too big": (sums.too_big, 0.5),
    "facts": (facts.fact, 3.5),
    "capitals": (facts.capital, 0.4),
    "repeating": (copying.repeating, 4.5),
    "repeating twice": (copying.repeating_twice, 0.5),
    "emoji meaning": (copying.meaning, 0.7),
    "JSON": (copying.as_json, 1.0),
    "counting": (stories.counting, 0.5),
    "stories and lists": (stories.piece, 1.3),
    "test phrases": (smalltalk.fixed, 0.7),
    "out of reach": (smalltalk.out_of_reach, 1.5),
    "never told": (memory.unknown, 0.3),
}


def exchange(draw: Draw) -> list[Message]:
    """One exchange of any skill but memory and tools, which need more than one turn or a system turn."""
    makers, weights = zip(*EXCHANGES.values(), strict=True)
    maker: Exchange = draw.rng.choices(makers, weights)[0]
    return maker(draw)


def short_exchange(draw: Draw) -> list[Message]:
    """One that does not fill the context with a story."""
    while True:
        messages = exchange(draw)
        if sum(len(message["content"]) for message in messages) < 250:
            return messages


REMEMBERING: Final[Mapping[str, tuple[Exchange, float]]] = {
    "recall": (partial(memory.recall, between=short_exchange), 4.0),
    "name and city": (partial(memory.introduction, between=short_exchange), 1.0),
    "repeat yourself": (partial(memory.again, between=short_exchange), 1.2),
}
SPECIAL: Final[Mapping[str, tuple[Callable[[Draw], Conversation], float]]] = {
    "tool calls": (tools.tool_call, 4.0),
    "tool answers": (tools.tool_answer, 3.0),
    "two calls": (tools.two_calls, 0.7),
    "no fitting tool": (tools.no_fitting_tool, 0.6),
    "beside tools": (
        lambda draw: tools.beside_tools(draw, draw.rng.choice((greetings.greeting, facts.fact))(draw)),
        0.6,
    ),
    "from the system turn": (memory.from_system, 0.8),
}


def talk(draw: Draw) -> Conversation:
    """One to many exchanges, some of them remembering earlier ones."""
    messages: list[Message] = []
    for _ in range(draw.rng.choices((1, 2, 3, 5, 9, 16), (60, 25, 9, 4, 1.5, 0.5))[0]):
        if draw.chance(0.22):
            makers, weights = zip(*REMEMBERING.values(), strict=True)
            chosen: Exchange = draw.rng.choices(makers, weights)[0]
            told = chosen(draw)
            fresh = not any("ame" in message["content"] or "told me yet" in message["content"] for message in messages)
            messages += told if fresh or draw.chance(0.5) else short_exchange(draw)
        elif messages and draw.chance(0.5):
            messages += short_exchange(draw)
        else:
            messages += exchange(draw)
    if draw.chance(0.22):
        messages.insert(0, {"role": "system", "content": draw.rng.choice(SYSTEMS)})
    return Conversation(messages)


def conversation(draw: Draw) -> Conversation:
    if draw.chance(0.26):
        makers, weights = zip(*SPECIAL.values(), strict=True)
        special: Callable[[Draw], Conversation] = draw.rng.choices(makers, weights)[0]
        return special(draw)
    return talk(draw)


PLAIN: Final = (stories.LIGHTHOUSE, stories.CLOCKMAKER, stories.ROBOT, stories.CAT, stories.DRAGON, stories.SEA,
                stories.SPRING, stories.SERVER,
                stories.HAIKU, *stories.JOKES, stories.ALPHABET, stories.DAYS, stories.MONTHS)  # fmt: skip


def plain(draw: Draw) -> str:
    """Text without turns, for the completions route."""
    roll = draw.rng.random()
    if roll < 0.3:
        return draw.rng.choice(PLAIN)
    if roll < 0.5:
        return " ".join(item.answer for item in draw.rng.sample(facts.FACTS, draw.rng.randint(1, 3)))
    if roll < 0.6:
        first = draw.rng.randint(0, 20)
        return ", ".join(map(str, range(first, first + draw.rng.randint(5, 30)))) + "."
    if roll < 0.75:
        a, b = sums.pair(draw)
        return f"{a} + {b} = {a + b}."
    if roll < 0.82:
        country = draw.rng.choice(list(facts.CAPITALS))
        return f"The capital of {country} is {facts.CAPITALS[country]}."
    if roll < 0.9:
        return draw.rng.choice((
            "The quick brown fox jumps over the lazy dog.",
            "Hello, my name is Demo and I am a small demonstration model.",
            "The meaning of life is a question for a larger model.", "This is a test. This is only a test.",
            "Hello world! This is a small demonstration model.",
        ))  # fmt: skip
    messages = short_exchange(draw)
    return f"Q: {messages[-2]['content']}\nA: {messages[-1]['content']}"


def document(draw: Draw) -> list[Piece]:
    """One row of the corpus."""
    if draw.chance(0.05):
        return [Piece(plain(draw) + "<|endoftext|>", True)]
    return render(conversation(draw))


def held_out(skill: str, draw: Draw) -> Conversation:
    """A conversation of this skill whose last message is the one to be scored."""
    if skill in SPECIAL:
        return SPECIAL[skill][0](draw)
    return Conversation({**EXCHANGES, **REMEMBERING}[skill][0](draw))


SKILLS: Final = (*EXCHANGES, *REMEMBERING, *SPECIAL)
