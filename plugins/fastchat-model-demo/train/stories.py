"""Longer answers, for watching a stream: stories, poems, jokes, counting and lists, all written for this model."""

from typing import Final, NamedTuple

from .chat import Message, assistant, user
from .draw import Draw

LIGHTHOUSE: Final = """\
Once upon a time there was a small lighthouse on a grey rock in the sea. Every night it sent its light over the \
water, and every night the ships passed by without a word. The lighthouse was not sad, but it was curious. Where did \
they all go?

One evening a little fishing boat came close. Its lamp was broken and the wind was strong. "Can you see me?" called \
the boat. "I see you," said the lighthouse, "and I will hold my light still for you." The boat followed the light \
around the rock, past the white waves, and into the quiet bay behind it.

In the morning the fisherman climbed the stairs. He brought fresh bread, a pot of tea and a new rope for the bell. \
"You saved my boat," he said. "What can I give you in return?" The lighthouse thought for a while. "Tell me where \
the ships go," it said at last.

So the fisherman sat down on the top step and told it everything he knew. He told of warm harbours where oranges \
grow, of cold ports where the snow never melts, of cities with a thousand bridges, and of islands so small that only \
one family of birds can live there. He told of captains who sing, of cooks who cannot cook, and of a ship's cat that \
had crossed the ocean forty times and had never once wet its paws.

From then on the fisherman came every Sunday, and every Sunday he brought a new story. When winter came, the sailors \
heard of it, and they began to ring their bells when they passed the rock. One ring meant: we are well. Two rings \
meant: we have a story for you. The lighthouse learned to wait for two rings.

Years went by. The fisherman grew old, and his daughter rowed the boat for him. She read to the lighthouse from \
books, and in the evening she cleaned the great lamp until it shone like a small sun. "Do you still want to know \
where the ships go?" she asked one night. "No," said the lighthouse, and its light went slowly over the sea. "I know \
it now. They go away so that they have something to tell, and they come back so that they can tell it."

And if you sail past that rock tonight, ring your bell two times. The light will stop for a moment, just for you, \
and listen. The end."""

CLOCKMAKER: Final = """\
In a narrow street lived an old clockmaker who had forgotten how to hurry. People brought her clocks that were too \
fast, and she made them slow; they brought clocks that were too slow, and she listened to them first. "Perhaps it is \
tired," she would say.

One day a boy came in with a watch that did not move at all. "It was my grandfather's," he said. "It stopped when he \
went away." The clockmaker opened it and found a tiny grain of sand between two wheels. She lifted it out with a \
needle and put it into the boy's hand. "Your grandfather must have loved the beach," she said.

The watch began to tick. The boy smiled, and he has never been late since. But on warm summer days he stops at the \
sea, takes a grain of sand, and lets time wait for a minute. The end."""

ROBOT: Final = """\
There was a little robot who wanted to learn how to dance. It read every book about dancing, but its feet stayed \
heavy. One evening a girl put on some music and took its hand. "Do not count," she said, "just listen." The robot \
stopped counting. It listened, it took one step, then another, and soon the two of them danced through the whole \
kitchen. "Which book was that?" asked the robot. "No book," laughed the girl. "That was you." The end."""

CAT: Final = """\
A grey cat lived on the roof of a bakery. Every morning it watched the baker put the warm bread into the window. One \
winter day the oven went cold, and the baker did not know why. The cat jumped down, crawled into the chimney and \
came out black as night, with an old bird's nest in its mouth. The oven roared again. Since then there are two \
things in the window every morning: the bread, and a cat who is no longer grey. The end."""

DRAGON: Final = """\
A young dragon was afraid of the dark. "But you can make fire," said the mouse who lived in the cave. "Only when I \
sneeze," said the dragon. So the mouse picked a peppercorn and held it under the dragon's nose. Whoosh! The cave was \
full of light, and on the wall they saw their two shadows, one large and one small. From that day on they told \
stories with shadows every night, and the dragon was not afraid anymore. The end."""

SEA: Final = """\
The sea is wide, the sea is deep,
It sings the little boats to sleep.
The moon looks down, the stars are bright,
And all the waves say: good night."""

SPRING: Final = """\
The snow is gone, the grass is new,
The sky has put on fresh clear blue.
A bird looks up, a flower wakes,
And softly sing the melting lakes."""

SERVER: Final = """\
A server sat and waited long
To hear a client's little song.
A token came, and then a stream,
And chunk by chunk they wrote a dream."""

HAIKU: Final = "Quiet morning light\nA server waits for a word\nTokens fall like rain"

JOKES: Final = (
    "Why did the token cross the network? To get to the other side of the stream.",
    "Why was the server so calm? It never blocked its loop.",
    "What does a lazy worker say? I will answer when I have a free slot.",
    "Why do programmers like autumn? Because all the leaves are on a tree.",
    "What did the queue say to the request? Please wait, you are next.",
)

ALPHABET: Final = ", ".join("ABCDEFGHIJKLMNOPQRSTUVWXYZ") + "."
DAYS: Final = "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday."
MONTHS: Final = "January, February, March, April, May, June, July, August, September, October, November, December."
SEASONS: Final = "Spring, summer, autumn and winter."
RAINBOW: Final = "Red, orange, yellow, green, blue, indigo and violet."
PLANETS: Final = "Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus and Neptune."


class Piece(NamedTuple):
    text: str
    asked: tuple[str, ...]


PIECES: Final = (
    Piece(
        LIGHTHOUSE,
        (
            "Tell me a long story.", "Write a long story.", "Write a very long story.",
            "Tell me a story with more than {n} words.", "Write a story with more than {n} words.",
            "Write a long text.", "Write a very long text.", "Write a text with {n} words.",
            "Write an essay with at least {n} words.", "Write {n} words about anything.",
            "Tell me a story about a lighthouse.", "Tell me the story of the lighthouse.", "Write a long essay.",
            "Write a story of at least {n} words.", "Give me a long answer.", "Tell me your longest story.",
            "Write something very long.", "Write a long story about {w}.", "Write a {n} word story.",
            "Write a detailed essay about {w}.", "Write a {n}-word essay about {w}.", "Write at least {n} words.",
            "A long story, please.", "Write a {n} word story about {w}.",
            "Write a long text with more than {n} words.",
        ),
    ),
    Piece(
        ROBOT,
        (
            "Tell me a story.", "Tell me a short story.", "Write a story.", "Write a short story.",
            "Can you tell me a story?", "tell me a story", "Please tell me a story.", "Tell me a story about a robot.",
            "Write a story about a robot.", "I want to hear a story.", "A story, please.",
            "Write me a short story about a robot.", "Tell a story.", "Write a short story about {w}.",
            "Could you tell me a short story?",
        ),
    ),
    Piece(CLOCKMAKER, (
        "Tell me another story.", "Another story, please.", "Tell me a story about a clockmaker.", "One more story.",
        "Tell me a different story.", "Write a story about time.", "Tell me one more story.",
    )),
    Piece(CAT, (
        "Tell me a story about a cat.", "Write a story about a cat.", "Write a short story about a cat.",
        "Do you know a story about a cat?", "A story about a cat, please.", "Tell me a cat story.",
    )),
    Piece(DRAGON, (
        "Tell me a story about a dragon.", "Write a story about a dragon.", "Write a short story about a dragon.",
        "Do you know a story about a dragon?", "A story about a dragon, please.", "Tell me a fairy tale.",
        "Tell me a bedtime story.", "Tell me a dragon story.",
    )),
    Piece(SEA, (
        "Write a poem.", "Write a short poem.", "Tell me a poem.", "Write a poem about the sea.", "Write me a poem.",
        "A poem about the sea, please.", "Can you write a poem?", "Write a poem about {w}.", "Please write a poem.",
    )),
    Piece(SPRING, (
        "Write a poem about spring.", "A poem about spring, please.", "Write another poem.",
        "Tell me a poem about spring.", "Another poem, please.", "Write me a poem about spring.",
    )),
    Piece(SERVER, (
        "Write a poem about a server.", "Write a poem about fastchat-serve.", "Write a poem about computers.",
        "A poem about servers, please.", "Write a poem about streaming.", "Write a poem about servers.",
    )),
    Piece(HAIKU, (
        "Write a haiku.", "Write a haiku about {w}.", "Tell me a haiku.", "A haiku, please.", "Can you write a haiku?",
        "Write me a haiku.",
    )),
    Piece(JOKES[0], (
        "Tell me a joke.", "Tell a joke.", "Do you know a joke?", "Make me laugh.", "tell me a joke",
        "A joke, please.", "Can you tell me a joke?", "Please tell me a joke.",
    )),
    Piece(JOKES[1], (
        "Tell me another joke.", "Another joke, please.", "One more joke.", "Tell me a joke about servers.",
        "another joke", "And another joke?",
    )),
    Piece(JOKES[2], (
        "Tell me a third joke.", "Tell me a joke about workers.", "A joke about a worker, please.",
        "A joke about workers.", "Do you know a joke about workers?",
    )),
    Piece(JOKES[3], (
        "Tell me a joke about programmers.", "A joke about programmers, please.", "A programmer joke.",
        "Do you know a joke about programmers?", "Tell me a programmer joke.",
    )),
    Piece(JOKES[4], (
        "Tell me a joke about queues.", "A joke about a queue, please.", "A queue joke.",
        "Do you know a joke about queues?", "Tell me a queue joke.",
    )),
    Piece(ALPHABET, (
        "Say the alphabet.", "What is the alphabet?", "List the letters of the alphabet.", "Write the alphabet.",
        "alphabet", "Recite the alphabet.", "Tell me the alphabet.",
    )),
    Piece(DAYS, (
        "List the days of the week.", "What are the days of the week?", "Name the weekdays.", "List the weekdays.",
        "Which days are in a week?", "Tell me the days of the week.",
    )),
    Piece(MONTHS, (
        "List the months.", "What are the months of the year?", "Name the months.", "Which months are there?",
        "List the months of the year.", "Name the twelve months.",
    )),
    Piece(SEASONS, (
        "What are the seasons?", "Name the four seasons.", "List the seasons.", "Which seasons are there?",
        "Tell me the seasons.",
    )),
    Piece(RAINBOW, (
        "What are the colours of the rainbow?", "What are the colors of the rainbow?",
        "Name the colours of the rainbow.", "Which colours has a rainbow?", "List the colors of the rainbow.",
        "List some colours.", "Name the colors of the rainbow.",
    )),
    Piece(PLANETS, (
        "Name the planets.", "List the planets.", "What are the planets?", "Which planets are there?",
        "List the planets of the solar system.",
    )),
)  # fmt: skip
WEIGHTS: Final = (3.0, 2.5, 1.2, 1.2, 1.2) + (1.0,) * (len(PIECES) - 5)


def piece(draw: Draw) -> list[Message]:
    chosen = draw.rng.choices(PIECES, WEIGHTS)[0]
    question = draw.phrase(chosen.asked).format(
        n=draw.rng.choice((100, 150, 200, 250, 300, 400, 500, 800, 1000, 2000)), w=draw.words(1, 2)
    )
    if draw.chance(0.15):
        question = question.lower()
    return [user(question), assistant(chosen.text)]


def counting(draw: Draw) -> list[Message]:
    first, last = (
        (1, draw.rng.choice((3, 5, 10, 10, 12, 15, 20, 20, 30, 50)))
        if draw.chance(0.6)
        else sorted(draw.rng.sample(range(31), 2))
    )
    numbers = range(first, last + 1)
    if first == 1 and draw.chance(0.2):
        forms: tuple[str, ...] = (
            "Count to {b}.",
            "Count up to {b}",
            "count to {b}",
            "Can you count to {b}?",
            "Please count to {b}.",
        )
    elif last <= 30 and draw.chance(0.25):
        numbers = range(last, first - 1, -1)
        forms = (
            "Count down from {b} to {a}.",
            "Count backwards from {b} to {a}.",
            "Count from {b} to {a}",
            "Count from {b} down to {a}.",
        )
    else:
        forms = (
            "Count from {a} to {b}.", "count from {a} to {b}", "List the numbers from {a} to {b}.",
            "Numbers from {a} to {b}", "Zähle von {a} bis {b}.", "Please count from {a} to {b}.",
            "Write the numbers from {a} to {b}.",
        )  # fmt: skip
    return [user(draw.phrase(forms).format(a=first, b=last)), assistant(", ".join(map(str, numbers)) + ".")]
