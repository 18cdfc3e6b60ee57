"""Repeating what the user gave, character for character: words, numbers, emoji, Chinese, anything.

The most varied skill of all, since copying something never seen is what a small model must learn as a habit
and can not remember. Values embedded in tool calls and in memory lean on the same habit.
"""

import json
from collections.abc import Callable
from typing import Final

from .chat import Message, assistant, user
from .draw import Draw, listed

EMOJI: Final = {
    "🎉": "a celebration", "🚀": "a rocket, often a fast start", "❤️": "love", "😀": "a happy face",
    "😂": "tears of joy", "😢": "sadness", "👍": "agreement", "👎": "disagreement", "🔥": "fire, or something great",
    "🐍": "a snake, often Python", "🌍": "the Earth", "☀️": "the sun", "🌧️": "rain", "⭐": "a star",
    "🎂": "a birthday cake", "🐱": "a cat", "🐶": "a dog", "🍕": "a pizza", "☕": "a cup of coffee", "💡": "an idea",
    "🔒": "a lock, or security", "⏰": "an alarm clock", "📚": "books", "🎵": "music", "🤖": "a robot",
    "👋": "a wave, hello or goodbye", "🙏": "thanks, or a request", "💻": "a laptop", "👨‍👩‍👧": "a family",
    "👩‍💻": "a woman at a computer", "🏳️‍🌈": "the rainbow flag", "🇫🇷": "the flag of France",
    "🇯🇵": "the flag of Japan", "🇩🇪": "the flag of Germany", "✅": "done", "❌": "wrong, or no", "🌈": "a rainbow",
    "🍎": "an apple",
}  # fmt: skip
MORE_EMOJI: Final = listed(
    "👨‍👩‍👧‍👦 👩‍🚀 🧑‍🔬 👍🏽 👋🏿 🏴‍☠️ 🇧🇷 🇮🇳 🇨🇳 🇺🇸 🦄 🐼 🦊 🐸 🐙 🦋 🌸 🌵 🍄 🍓 🍋 🥑 🌮 🍣 🍪 🍺 ⚽ 🏀 🎸 🎨 🎲 🚗 "
    "🚲 ✈️ 🏠 🗼 🌋 🌊 ⚡ ❄️ 🌙 🪐 💎 🔑 🔧 📦 📷 📞 🧠 👀 💪 🤔 😎 😴 🥳 😡 🤯 😱 👻 💯 ‼️ ➡️ ♻️ 👩‍❤️‍👨 🧜‍♀️ "
    "🤷‍♂️"
)
HAN: Final = (
    "天地人日月山水火木金土大小上下左右中国东西南北春夏秋冬风花雪雨云石田禾米竹马牛羊鸟鱼虫犬家门车书心手口目耳足"
    "我你他她们的是不了在有和就都也很好多少爱学生老师朋友今明年时分早晚吃喝看听说读写走来去开关红黄蓝白黑新高长"
    "北京上海東京語漢字車電話時間機械學習模型服務器世界和平龍鳳"
)
KANA: Final = (
    "あいうえおかきくけこさしすせそたちつてとなにぬねのはひふへほまみむめもやゆよらりるれろわをん"
    "アイウエオカキクケコサシスセソタチツテトナニヌネノ"
)
HANGUL: Final = "가나다라마바사아자차카타파하고노도로모보소오조초구누두루무부수우주한글국어서울사람"
OTHER_SCRIPTS: Final = (
    "абвгдежзиклмнопрстуфхцчшщыэюяαβγδεζηθικλμνξοπρστυφχψ"
    "ωأبتثجحخدذرزسشصضطظعغفقكلمنهويअआइईउएकखगघचजटडतथदनपबमयर"
    "लवशसहäöüßéèêñçåø"
)
MARKS: Final = "!?.,;:-_+*/=#@%&()[]{}<>|~^$'"


def letters(draw: Draw, alphabet: str, most: int) -> str:
    return "".join(draw.rng.choice(alphabet) for _ in range(draw.rng.randint(1, most)))


def rare(draw: Draw) -> str:
    """Characters from anywhere, so that no byte stays unused."""
    ranges = ((0xC0, 0x24F), (0x370, 0x3FF), (0x400, 0x4FF), (0x5D0, 0x5EA), (0x905, 0x939), (0xE01, 0xE2E),
              (0x2190, 0x2300),
              (0x3041, 0x3096), (0x4E00, 0x9FA5), (0xAC00, 0xD7A3), (0x1F300, 0x1F5FF), (0x1F600, 0x1F64F),
              (0x1F680, 0x1F6C0),
              (0x1F900, 0x1F9FF), (0x1D400, 0x1D4FF))  # fmt: skip
    low, high = draw.rng.choice(ranges)
    return "".join(chr(draw.rng.randrange(low, high)) for _ in range(draw.rng.randint(1, 5)))


def emoji(draw: Draw) -> str:
    known = draw.rng.choice((list(EMOJI), MORE_EMOJI))
    return "".join(draw.rng.choice(known) for _ in range(draw.rng.choice((1, 1, 2, 3, 4, 6))))


def code(draw: Draw) -> str:
    a, b = draw.word(), draw.word()
    forms = (
        f"{a}_{b}", f"{a}-{b}", f"{a}.{b}()", f"{a} = {draw.number()}", f"/{a}/{b}", f"{a}@{b}.org",
        f"{a.upper()}{draw.number()}", f"#{a}", f"{a}{b.capitalize()}", f"[{a}, {b}]",
        f"{draw.number(2)}.{draw.number(3)}", f"v{draw.number(2)}.{draw.number(1)}",
    )  # fmt: skip
    return draw.rng.choice(forms)


def sentence(draw: Draw) -> str:
    a, b, n, name = draw.word(), draw.word(), draw.number(2), draw.name()
    forms = (
        "The {a} is {b}.", "{name} likes {a} and {b}.", "I saw {n} of them in {a}.", "{name} went to the {a} today.",
        "My {a} has a {b}!", "Do you like {a}?", "{a}, {b} and {name}", "This is a {a}.",
        "The {a} {b} jumps over the {name}.", "There are {n} {a} here.",
    )  # fmt: skip
    return draw.rng.choice(forms).format(a=a, b=b, n=n, name=name)


KINDS: Final[tuple[tuple[Callable[[Draw], str], float], ...]] = (
    (lambda draw: draw.words(1, 5), 3), (lambda draw: draw.name(), 1.5), (sentence, 2.5), (emoji, 2), (code, 1.5),
    (rare, 0.8),
    (lambda draw: letters(draw, HAN, 10), 1.5), (lambda draw: letters(draw, KANA, 8), 0.6),
    (lambda draw: letters(draw, HANGUL, 6), 0.4),
    (lambda draw: letters(draw, OTHER_SCRIPTS, 6), 0.4),
    (lambda draw: letters(draw, "abcdefghijklmnopqrstuvwxyz", 9), 1),
    (lambda draw: letters(draw, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", 6), 0.6),
    (lambda draw: letters(draw, MARKS, 5), 0.2),
    (lambda draw: str(draw.number(7)), 1),
    (lambda draw: " ".join(str(draw.number(2)) for _ in range(draw.rng.randint(2, 6))), 0.6),
)  # fmt: skip


def anything(draw: Draw, most: int = 3) -> str:
    """One to `most` things of any kind, side by side."""
    kinds, weights = zip(*KINDS, strict=True)
    count = draw.rng.choices(range(1, most + 1), [4.0 / 2**n for n in range(most)])[0]
    return " ".join(kind(draw) for kind in draw.rng.choices(kinds, weights, k=count))


REPEAT: Final = (
    "Repeat this: {0}", "Repeat: {0}", "repeat {0}", "Echo: {0}", "echo {0}", "Say: {0}", "say {0}",
    "Repeat after me: {0}", "Copy this: {0}", "Please repeat this: {0}", "Please say: {0}", "Write: {0}",
    "Output exactly this: {0}", "Print {0}", "Wiederhole: {0}", "Sag: {0}", "Répète : {0}", "Repite: {0}",
    "Ripeti: {0}", "Repita: {0}", "重复：{0}", "请重复：{0}", "繰り返して：{0}", "Повтори: {0}",
    "Repeat this text: {0}", "Repeat the following:\n{0}", "Say exactly: {0}", "{0}\nRepeat that.",
    "Can you repeat this: {0}", "Just echo this: {0}", "Repeat this exactly: {0}", "Please echo: {0}",
)  # fmt: skip
QUOTED: Final = (
    "Say \"{0}\"", "Repeat \"{0}\".", "Please write \"{0}\".", "Repeat \"{0}\" back to me.", "Answer with \"{0}\".",
    "Print \"{0}\"",
)  # fmt: skip
MEANING: Final = (
    "What does {0} mean?", "What is {0}?", "Explain {0}", "what does {0} mean", "What's {0}?", "Was bedeutet {0}?",
    "{0}?", "What does this mean: {0}", "What does the emoji {0} mean?",
)  # fmt: skip


def repeating(draw: Draw) -> list[Message]:
    text = anything(draw, most=4)
    if draw.chance(0.15) and '"' not in text:
        return [user(draw.phrase(QUOTED).format(text)), assistant(text)]
    if draw.chance(0.06):
        text = draw.words(8, 30)
    return [user(draw.phrase(REPEAT).format(text)), assistant(text)]


def repeating_twice(draw: Draw) -> list[Message]:
    text = draw.rng.choice((emoji(draw), draw.word(), draw.name()))
    count, spelled = draw.rng.choice(
        ((2, "twice"), (2, "two times"), (3, "three times"), (3, "3 times"), (4, "4 times"), (5, "5 times"))
    )
    return [
        user(f"{draw.rng.choice(('Say', 'Repeat', 'Write'))} {text} {spelled}{draw.rng.choice(('', '.'))}"),
        assistant(" ".join([text] * count)),
    ]


def meaning(draw: Draw) -> list[Message]:
    sign = draw.rng.choice(list(EMOJI))
    if draw.chance(0.25):
        return [
            user(
                draw.rng.choice(
                    ("Send me an emoji for {0}.", "Which emoji means {0}?", "Show the emoji for {0}.")
                ).format(EMOJI[sign])
            ),
            assistant(sign),
        ]
    return [user(draw.phrase(MEANING).format(sign)), assistant(f"{sign} stands for {EMOJI[sign]}.")]


def as_json(draw: Draw) -> list[Message]:
    """A JSON object from the values in the question."""
    name, age, city = draw.name(), draw.number(2), draw.city()
    forms: tuple[tuple[str, dict[str, str | int]], ...] = (
        (f"Give me a JSON object with name {name} and age {age}.", {"name": name, "age": age}),
        (f"Write JSON: name {name}, city {city}.", {"name": name, "city": city}),
        (
            f"Return JSON with the name {name}, the age {age} and the city {city}.",
            {"name": name, "age": age, "city": city},
        ),
        (f"{name} is {age} years old and lives in {city}. Answer in JSON.", {"name": name, "age": age, "city": city}),
        (f"{name} is {age} years old. Answer in JSON.", {"name": name, "age": age}),
    )
    question, value = draw.rng.choice(forms)
    return [user(question), assistant(json.dumps(value, ensure_ascii=False))]
