"""What the user said some turns ago: names, colours, cities, the last answer, the first message.

Between telling and asking stand turns of other skills, given in by the caller as `between`.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

from .chat import Conversation, Message, assistant, user
from .draw import Draw


class Kind(NamedTuple):
    value: Callable[[Draw], str]
    told: tuple[str, ...]
    noted: tuple[str, ...]
    asked: tuple[str, ...]
    recalled: str


NICE: Final = ("Nice to meet you, {0}!", "Hello {0}! How can I help you?", "Nice to meet you!")
NOTED: Final = ("I will remember that.", "{0}, noted.", "Thank you, noted.")

KINDS: Final = (
    Kind(
        Draw.name,
        (
            "My name is {0}.", "I am {0}.", "Hi, I'm {0}.", "Hello, my name is {0}.", "my name is {0}", "Call me {0}.",
            "Hi! My name is {0}", "I'm {0}", "They call me {0}.", "Hello! I am {0}.",
            "My name is {0}. Please remember it.", "Hey, I'm {0}!", "My name's {0}.",
        ),
        NICE,
        (
            "What is my name?", "What's my name?", "Who am I?", "Do you remember my name?", "what is my name",
            "Tell me my name.", "Do you know my name?", "What am I called?", "And what is my name?",
            "What was my name?", "What's my name again?",
        ),
        "Your name is {0}.",
    ),
    Kind(
        Draw.name,
        ("Ich heiße {0}.", "Mein Name ist {0}.", "Ich bin {0}.", "Hallo, ich heiße {0}."),
        ("Freut mich, {0}!",),
        ("Wie heiße ich?", "Wie ist mein Name?", "Wer bin ich?", "Weißt du meinen Namen?"),
        "Du heißt {0}.",
    ),
    Kind(
        Draw.name,
        ("Je m'appelle {0}.", "Mon nom est {0}.", "Moi, c'est {0}.", "Bonjour, je m'appelle {0}."),
        ("Enchanté, {0} !",),
        ("Comment je m'appelle ?", "Quel est mon nom ?", "Qui suis-je ?", "Tu connais mon nom ?"),
        "Tu t'appelles {0}.",
    ),
    Kind(
        Draw.name,
        ("Me llamo {0}.", "Mi nombre es {0}.", "Soy {0}.", "Hola, me llamo {0}."),
        ("¡Mucho gusto, {0}!",),
        ("¿Cómo me llamo?", "¿Cuál es mi nombre?", "¿Quién soy?", "¿Sabes mi nombre?"),
        "Te llamas {0}.",
    ),
    Kind(
        Draw.name,
        ("我叫{0}。", "我的名字是{0}。", "我是{0}。", "你好，我叫{0}。"),
        ("很高兴认识您，{0}！",),
        ("我叫什么？", "我叫什么名字？", "我是谁？", "我的名字是什么？"),
        "您叫{0}。",
    ),
    Kind(
        Draw.colour,
        (
            "My favourite colour is {0}.", "My favorite color is {0}.", "I like {0} best of all colours.",
            "I love the colour {0}.", "my favorite color is {0}",
        ),
        NOTED,
        (
            "What is my favourite colour?", "What is my favorite color?", "Which colour do I like?",
            "what's my favorite color?", "What colour do I love?",
        ),
        "Your favourite colour is {0}.",
    ),
    Kind(
        lambda draw: str(draw.number(5)),
        (
            "My number is {0}.", "My favourite number is {0}.", "Remember the number {0}.",
            "Remember this number: {0}", "My lucky number is {0}.",
        ),
        NOTED,
        (
            "What is my number?", "What was my number?", "What number did I tell you?", "Which number did I give you?",
            "What was the number?",
        ),
        "Your number is {0}.",
    ),
    Kind(
        Draw.city,
        (
            "I live in {0}.", "I am from {0}.", "I come from {0}.", "My home is in {0}.", "I was born in {0}.",
            "My city is {0}.",
        ),
        NOTED,
        (
            "Where do I live?", "Where am I from?", "Which city do I live in?", "Where do I come from?",
            "What is my city?", "Which city am I from?",
        ),
        "You are from {0}.",
    ),
    Kind(
        Draw.word,
        (
            "The password is {0}.", "The secret word is {0}.", "Remember the word {0}.", "Remember this word: {0}",
            "The magic word is {0}.", "The code word is {0}.",
        ),
        NOTED,
        (
            "What is the password?", "What is the secret word?", "Which word did I tell you?", "What was the word?",
            "What is the magic word?", "What was the secret word?",
        ),
        "The word is {0}.",
    ),
    Kind(
        Draw.name,
        (
            "My dog is called {0}.", "My cat's name is {0}.", "I have a dog named {0}.", "I have a cat named {0}.",
            "My pet is called {0}.",
        ),
        NOTED,
        (
            "What is my pet called?", "What is the name of my pet?", "What is my dog called?", "What's my cat's name?",
            "What is my dog's name?",
        ),
        "Your pet is called {0}.",
    ),
)  # fmt: skip

AGAIN: Final = (
    "Repeat your last answer.", "Say that again.", "Repeat that.", "What did you just say?", "Again, please.",
    "Can you repeat that?", "repeat your answer", "Please repeat your last answer.", "Once more, please.",
    "Could you say that again?",
)  # fmt: skip
MY_FIRST: Final = (
    "What did I say first?",
    "What was my first message?",
    "Repeat my first message.",
    "What was the first thing I said?",
    "What did I ask first?",
)
MY_LAST: Final = (
    "What did I just say?",
    "What was my last message?",
    "Repeat my last message.",
    "Repeat what I just said.",
    "What did I just ask?",
)

Between = Callable[[Draw], list[Message]]


def pause(draw: Draw, between: Between, most: int = 3) -> list[Message]:
    return [
        message
        for _ in range(draw.rng.choices(range(most + 1), [5, 3, 1, 1][: most + 1])[0])
        for message in between(draw)
    ]


def recall(draw: Draw, between: Between) -> list[Message]:
    """One or two values told, then one of them asked for."""
    kinds = draw.rng.sample(KINDS, draw.rng.choice((1, 1, 2)))
    values = [kind.value(draw) for kind in kinds]
    messages: list[Message] = []
    for kind, value in zip(kinds, values, strict=True):
        messages += [user(draw.phrase(kind.told).format(value)), assistant(draw.rng.choice(kind.noted).format(value))]
        messages += pause(draw, between)
    names = [value for kind, value in zip(kinds, values, strict=True) if kind in KINDS[:5]]
    which = draw.rng.randrange(len(kinds))
    value = names[-1] if values[which] in names else values[which]  # the latest name counts
    return [*messages, user(draw.phrase(kinds[which].asked)), assistant(kinds[which].recalled.format(value))]


def introduction(draw: Draw, between: Between) -> list[Message]:
    """Two values in one sentence."""
    name, city = draw.name(), draw.city()
    told = (
        "My name is {0} and I live in {1}.",
        "I am {0} from {1}.",
        "Hi, I'm {0} and I come from {1}.",
        "I'm {0}, I live in {1}.",
    )
    first = [user(draw.phrase(told).format(name, city)), assistant(draw.rng.choice(NICE).format(name))]
    asked, answer = (
        (KINDS[0].asked, f"Your name is {name}.") if draw.chance(0.5) else (KINDS[7].asked, f"You are from {city}.")
    )
    return [*first, *pause(draw, between), user(draw.phrase(asked)), assistant(answer)]


def from_system(draw: Draw) -> Conversation:
    """A fact in the system turn, asked for by the user."""
    name, city = draw.name(), draw.city()
    told = (
        "The user's name is {0}. They live in {1}.",
        "You talk to {0}, who lives in {1}.",
        "The user is called {0} and comes from {1}.",
    )
    asked, answer = (
        (KINDS[0].asked, f"Your name is {name}.") if draw.chance(0.6) else (KINDS[7].asked, f"You are from {city}.")
    )
    system: Message = {"role": "system", "content": draw.rng.choice(told).format(name, city)}
    return Conversation([system, user(draw.phrase(asked)), assistant(answer)])


def unknown(draw: Draw) -> list[Message]:
    """Asked for what was never told."""
    kind = draw.rng.choice((KINDS[0], KINDS[5], KINDS[6], KINDS[7], KINDS[9]))
    return [user(draw.phrase(kind.asked)), assistant("You have not told me yet.")]


def again(draw: Draw, between: Between) -> list[Message]:
    messages = between(draw)
    if draw.chance(0.3):
        return [*messages, user(draw.phrase(MY_LAST)), assistant(f"You said: {messages[-2]['content']}")]
    if draw.chance(0.3):
        first = messages[0]["content"]
        return [*messages, *pause(draw, between, 2), user(draw.phrase(MY_FIRST)), assistant(f"You said first: {first}")]
    return [*messages, user(draw.phrase(AGAIN)), assistant(messages[-1]["content"])]
