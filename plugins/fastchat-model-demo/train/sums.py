"""Sums up to 20, differences and small products; past that the model says that it can not.

A model this small remembers sums rather than computes them, so every pair occurs; the answer repeats the
question in digits, which lets all phrasings share one memory.
"""

from typing import Final

from .chat import Message, assistant, user
from .draw import Draw, listed

LARGEST: Final = 20
TOO_BIG: Final = "That is too big for me: I only know sums up to 20."

PLUS: Final = (
    "What is {a} + {b}?", "{a}+{b}", "{a} + {b}", "{a} + {b} =", "{a}+{b}=?", "{a} + {b} = ?", "What is {a}+{b}?",
    "How much is {a} plus {b}?", "What's {a} plus {b}?", "Add {a} and {b}.", "add {a} to {b}", "{a} plus {b}",
    "What is the sum of {a} and {b}?", "Compute {a} + {b}.", "Calculate {a}+{b}", "Please add {a} and {b}",
    "I have {a} apples and get {b} more. How many do I have?", "what is {a} plus {b}", "What does {a} + {b} make?",
    "Can you add {a} and {b}?", "Was ist {a} + {b}?", "Wie viel ist {a} plus {b}?", "Was ergibt {a} plus {b}?",
    "Rechne {a} + {b}.", "Combien font {a} + {b} ?", "Combien font {a} plus {b} ?", "Calcule {a} + {b}.",
    "¿Cuánto es {a} + {b}?", "¿Cuánto es {a} más {b}?", "Suma {a} y {b}.", "Quanto fa {a} + {b}?",
    "Quanto fa {a} più {b}?", "Quanto é {a} + {b}?", "Quanto é {a} mais {b}?", "{a} + {b} 等于多少？",
    "{a}加{b}等于几？", "{a} + {b} は？", "{a}足す{b}は？", "What is {a} + {b}? Answer with a number.",
    "Do you know what {a} plus {b} is?", "Hey, what is {a} + {b}?", "Tell me what {a} + {b} is.",
)  # fmt: skip
MINUS: Final = (
    "What is {a} - {b}?", "{a}-{b}", "{a} - {b}", "{a} - {b} =", "How much is {a} minus {b}?", "What's {a} minus {b}?",
    "Subtract {b} from {a}.", "{a} minus {b}", "Compute {a} - {b}.", "Was ist {a} - {b}?",
    "Wie viel ist {a} minus {b}?", "Combien font {a} - {b} ?", "¿Cuánto es {a} menos {b}?", "{a} - {b} 等于多少？",
    "what is {a} minus {b}?",
)  # fmt: skip
TIMES: Final = (
    "What is {a} * {b}?", "{a}*{b}", "{a} x {b}", "How much is {a} times {b}?", "What's {a} times {b}?",
    "{a} times {b}", "Multiply {a} by {b}.", "Was ist {a} mal {b}?", "Combien font {a} fois {b} ?",
    "what is {a} times {b}?",
)  # fmt: skip
PLUS_MORE: Final = (
    "And plus {b}?", "And plus {b} more?", "Plus {b}?", "and plus {b}", "+ {b}", "Now add {b}.", "Add {b} to that.",
    "And {b} more?", "Und plus {b}?", "Now add {b} to it.", "and now plus {b}?",
)  # fmt: skip
NUMERALS: Final = listed(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
SPELLED: Final = (
    "What is {a} plus {b}?", "{a} plus {b}", "Add {a} and {b}.", "How much is {a} plus {b}?", "What's {a} plus {b}?",
    "what is {a} plus {b}",
)  # fmt: skip


def pair(draw: Draw) -> tuple[int, int]:
    """Any a, b with a + b up to 20: each pair as likely as any other, but for those next to what is too big."""
    if draw.chance(0.03):
        return draw.rng.choice(((LARGEST, 0), (0, LARGEST)))
    while True:
        a, b = draw.rng.randint(0, LARGEST), draw.rng.randint(0, LARGEST)
        if a + b <= LARGEST:
            return a, b


def addition(draw: Draw) -> list[Message]:
    a, b = pair(draw)
    if draw.chance(0.1):
        question = draw.phrase(SPELLED).format(a=NUMERALS[a], b=NUMERALS[b])
    else:
        question = draw.phrase(PLUS).format(a=a, b=b)
    return [user(question), assistant(f"{a} + {b} = {a + b}.")]


def running_sum(draw: Draw) -> list[Message]:
    """A sum, then one or two times "and plus 2?"."""
    messages = addition(draw)
    total = int(messages[-1]["content"].rstrip(".").split("= ")[1])
    for _ in range(draw.rng.choice((1, 1, 2))):
        more = draw.rng.randint(0, min(LARGEST - total, 9))
        messages += [user(draw.phrase(PLUS_MORE).format(b=more)), assistant(f"{total} + {more} = {total + more}.")]
        total += more
    return messages


def difference(draw: Draw) -> list[Message]:
    b, c = pair(draw)
    question = draw.phrase(MINUS).format(a=b + c, b=b)
    return [user(question), assistant(f"{b + c} - {b} = {c}.")]


def product(draw: Draw) -> list[Message]:
    a, b = draw.rng.randint(0, 10), draw.rng.randint(0, 10)
    return [user(draw.phrase(TIMES).format(a=a, b=b)), assistant(f"{a} x {b} = {a * b}.")]


def too_big(draw: Draw) -> list[Message]:
    a, b = draw.number(5), draw.number(5)
    if a + b <= LARGEST:
        a = draw.rng.randint(LARGEST + 1, 99)
    if draw.chance(0.3):
        a, b = draw.rng.randint(11, 20), draw.rng.randint(11, 20)
    return [user(draw.phrase(PLUS).format(a=a, b=b)), assistant(TOO_BIG)]
