"""What is left: single test phrases, compliments, and the polite "I do not know" for everything out of reach."""

from typing import Final

from .chat import Message, assistant, user
from .draw import Draw

UNKNOWN: Final = "I do not know that. I am only a small demonstration model."
NO_CODE: Final = "I can not write programs. I am only a small demonstration model."
NO_TRANSLATION: Final = "I can not translate. I am only a small demonstration model."
FINE: Final = "That is good to hear!"

FIXED: Final = {
    "This is a test.": (
        "Say this is a test", "Say this is a test!", "say this is a test", "Say this is a test.",
        "Please say this is a test.",
    ),
    "Pong!": ("ping", "Ping", "Ping!", "ping?", "Ping."),
    "The test works.": (
        "test", "Test", "testing", "This is a test.", "Is this working?", "Does it work?", "Test!", "Does this work?",
    ),
    "Yes, I am here.": (
        "Are you there?", "Is anybody there?", "Hello? Are you there?", "Anyone here?", "Are you still there?",
    ),
    "Hello, world!": (
        "Say hello world", "Print hello world", "Say hello world.", "hello world", "Hello, world!", "Hello World",
        "Say: hello, world",
    ),
    "Hello!": ("Say hello", "Say hello.", "Say hi", "Please say hello.", "Just say hello."),
    "OK.": ("ok", "OK", "Okay.", "I see.", "Alright.", "okay", "Fine."),
    "Yes.": ("Say yes.", "Say yes", "Answer with yes.", "Can you hear me?", "Answer yes."),
    "No.": ("Say no.", "Say no", "Answer with no.", "Can you see me?", "Answer no."),
    "Thank you, that is kind!": (
        "You are great.", "Well done!", "Good job.", "You are smart.", "I like you.", "Good bot.", "You're nice.",
        "You are cool.",
    ),
    "I am sorry. I am only a small demonstration model.": (
        "That is wrong.", "You are stupid.", "This is bad.", "You are wrong.", "That's not right.",
        "I don't like that.", "Wrong!",
    ),
    FINE: ("I am fine.", "I'm fine, thanks.", "I feel good.", "I am happy.", "I am well.", "I'm good.", "Great!"),
    "I hope it gets better soon.": (
        "I am sad.", "I feel bad.", "I am tired.", "I am not well.", "I'm sick.", "I feel sad.",
    ),
}  # fmt: skip

ASKED: Final = (
    "Who won the {w} in {n}?", "Who is the president of {c}?", "What is the meaning of life?", "What is {w}?",
    "What is a {w}?", "Who was {p}?", "Who is {p}?", "How does a {w} work?", "Why is the sky {w}?",
    "When was {p} born?", "What is the price of {w}?", "Explain {w} to me.", "Explain quantum {w}.",
    "How do I cook {w}?", "Give me a recipe for {w}.", "What happened in {n}?", "How many people live in {c}?",
    "Which {w} is the best?", "Tell me about {w}.", "Tell me about {c}.", "What is the history of {c}?",
    "How far is {c} from {d}?", "What should I do in {c}?", "Who invented the {w}?", "Where can I buy {w}?",
    "Summarize the book {w}.", "What do you think about {w}?", "Is {w} better than {v}?", "How tall is {p}?",
    "What is the square root of {n}?", "Solve x + {n} = {m}.", "What is your opinion on {w}?",
    "Can you recommend a {w}?", "Plan a trip to {c}.", "Who wrote {w}?", "What are the symptoms of {w}?",
    "Why do {w} {v}?", "What is the difference between {w} and {v}?", "How can I learn {w}?", "How old is {p}?",
    "Give me advice about {w}.", "Do you like {w}?", "What is {w} {v}?", "Why {w}?", "What does {w} mean?",
    "Should I buy a {w}?", "How do I fix my {w}?", "Where is {c}?", "What is love?", "Tell me a fact about {w}.",
    "Tell me something.", "Was ist {w}?", "Wer ist {p}?", "Qui est {p} ?", "¿Quién es {p}?", "Who discovered {w}?",
)  # fmt: skip
CODE: Final = (
    "Write a Python program.", "Write a function that sorts a {w}.", "Write code for a {w}.",
    "Write a script that reads a {w}.", "Program a {w} in Python.", "Write Python code to {w} a {v}.",
    "Write a {w} in JavaScript.", "Implement a {w}.", "Write a SQL query for {w}.", "Debug this code: {w}()",
    "Write a Python function for {w}.",
)  # fmt: skip
TRANSLATE: Final = (
    "Translate {w} to French.", "Translate this: {w} {v}", "How do you say {w} in German?", "What is {w} in Spanish?",
    "Translate {w} into Chinese.", "Translate to English: {w}", "How do you say {w} in Japanese?",
)  # fmt: skip


def fixed(draw: Draw) -> list[Message]:
    reply = draw.rng.choice(list(FIXED))
    return [user(draw.phrase(FIXED[reply])), assistant(reply)]


def out_of_reach(draw: Draw) -> list[Message]:
    forms, reply = draw.rng.choices(((ASKED, UNKNOWN), (CODE, NO_CODE), (TRANSLATE, NO_TRANSLATION)), (6, 1, 1))[0]
    question = draw.phrase(forms).format(
        w=draw.words(1, 2),
        v=draw.word(),
        p=f"{draw.name()} {draw.name()}" if draw.chance(0.5) else draw.name(),
        c=draw.city(),
        d=draw.city(),
        n=draw.number(4),
        m=draw.number(3),
    )
    if draw.chance(0.2):
        question = question.lower()
    return [user(question), assistant(reply)]
