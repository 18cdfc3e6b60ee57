"""Random choices that keep training and held-out material apart.

Every skill draws its phrases, names and words here and so never needs to know which of the two it is
making. Skills own their phrases; this file owns invented words, people and places.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final, TypeVar

T = TypeVar("T")


def listed(text: str, separator: str | None = None) -> list[str]:
    """The parts of a text that is a list to its readers."""
    return text.split(separator)


ONSETS: Final = listed("b d f g h j k l m n p r s t v w z br cl dr fl gr kr pl sh st th tr qu y")
VOWELS: Final = listed("a e i o u a e i o ai ea ou y")
CODAS: Final = ["", "", "", "l", "n", "r", "s", "x", "m", "nd", "rk", "th", "ck", "ll"]

NAMES: Final = listed(
    "Ada Alan Alice Amir Ana Anna Ben Bob Carla Carlos Chen Clara David Diego Elena Emma Erik Eva Fatima Felix Grace "
    "Hana Hans Hugo Ines Ivan Jack Jan Jane John Julia Karl Kenji Lars Laura Lena Leo Linda Lisa Lucas Luis Maria "
    "Mark Marta Max Mei Mia Mohammed Nadia Nina Noah Nora Olga Oliver Omar Oscar Paul Pedro Peter Priya Ravi Rosa Sam "
    "Sara Sofia Stefan Tim Tom Uma Victor Wei Yara Yuki Zoe Björn Zoë José Łukasz Søren Aylin Dmitri Siobhán"
)

CITIES: Final = listed(
    "Amsterdam, Ankara, Athens, Auckland, Baghdad, Bangkok, Barcelona, Beijing, Berlin, Bern, Bogota, Boston, "
    "Brussels, Budapest, Cairo, Chicago, Copenhagen, Dakar, Delhi, Dublin, Geneva, Hamburg, Hanoi, Havana, Helsinki, "
    "Istanbul, Jakarta, Kyiv, Kyoto, Lagos, Lima, Lisbon, Ljubljana, London, Lyon, Madrid, Manila, Melbourne, Milan, "
    "Montreal, Moscow, Mumbai, Munich, Nairobi, Naples, Osaka, Oslo, Paris, Porto, Prague, Quito, Reykjavik, Riga, "
    "Rome, Santiago, Seoul, Shanghai, Singapore, Sofia, Stockholm, Sydney, Tallinn, Tokyo, Toronto, Tunis, Turin, "
    "Vienna, Vilnius, Warsaw, Zagreb, Zurich, New York, Los Angeles, San Francisco, Buenos Aires, Cape Town, Hong "
    "Kong, São Paulo, Mexico City",
    separator=", ",
)

WORDS: Final = listed(
    "apple river mountain candle window garden silver pencil orange ocean forest yellow basket bridge kitchen planet "
    "summer winter music paper stone cloud letter mirror bottle camera dragon lantern feather guitar hammer island "
    "jacket kettle ladder market needle onion parrot quiet rabbit saddle tiger umbrella violin wagon yogurt zebra "
    "python async server token stream model worker queue cache weather coffee bread cheese train ticket hotel cheap "
    "best new old red green blue small large fast slow happy sad open closed library history science football chess "
    "recipe soup travel"
)

COLOURS: Final = listed("red blue green yellow orange purple pink black white grey brown turquoise violet gold silver")


@dataclass(frozen=True)
class Draw:
    """A source of choices; `held_out` turns to the material that training never sees."""

    rng: Random
    held_out: bool = False

    def phrase(self, options: Sequence[T]) -> T:
        """One of `options`; of four or more, the last is held out."""
        if len(options) < 4:
            return self.rng.choice(options)
        return options[-1] if self.held_out else self.rng.choice(options[:-1])

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def split(self, options: Sequence[T]) -> T:
        """One of `options`, every seventh of which is held out."""
        while True:
            index = self.rng.randrange(len(options))
            if (index % 7 == 6) is self.held_out:
                return options[index]

    def invented(self, syllables: int | None = None) -> str:
        """A word that nobody has seen, lower-case."""
        count = syllables or self.rng.choice((1, 2, 2, 2, 3, 3, 4))
        pick = self.rng.choice
        word = "".join(pick(ONSETS) + pick(VOWELS) + (pick(CODAS) if self.chance(0.5) else "") for _ in range(count))
        return word if len(word) > 2 else word + pick(("n", "ra", "lo"))

    def word(self) -> str:
        return self.invented() if self.chance(0.4) else self.split(WORDS)

    def words(self, least: int, most: int) -> str:
        return " ".join(self.word() for _ in range(self.rng.randint(least, most)))

    def name(self) -> str:
        return self.invented().capitalize() if self.chance(0.65) else self.split(NAMES)

    def city(self) -> str:
        if self.chance(0.5):
            return self.split(CITIES)
        return " ".join(self.invented().capitalize() for _ in range(self.rng.choice((1, 1, 1, 2))))

    def colour(self) -> str:
        return self.invented(2) if self.chance(0.15) else self.rng.choice(COLOURS)

    def number(self, digits: int = 4) -> int:
        """Numbers of every length up to `digits` alike, so that short ones are not rare."""
        return self.rng.randrange(10 ** self.rng.randint(1, digits))
