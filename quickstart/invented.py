"""Invented words and numbers, divided into three worlds that never meet.

Every word and number belongs to exactly one world, decided by a checksum of its spelling. Pre-training text draws only
from `PRETRAINING`, training rows only from `TRAINING`, held-out rows only from `HELD_OUT`; so no generator can leak a
value into another, whatever its seed.
"""

from random import Random
from zlib import crc32

PRETRAINING, TRAINING, HELD_OUT = "pretraining", "training", "held-out"
_WORLD_OF_REMAINDER = (PRETRAINING, PRETRAINING, PRETRAINING, TRAINING, HELD_OUT)

_SYLLABLE_PARTS = """
b c d f g h j k l m n p qu r s t v w z bl br ch cl cr dr fl fr gl gr ph pl pr sc sh sk sl sm sn sp st str sw th tr tw
a e i o u a e i o u ai ea ee ie oa oo ou y
b ck d f g l ll m n nd ng nt p r rd rk rn s sh ss st t th x
"""
_ONSETS, _VOWELS, _CODAS = (line.split() for line in _SYLLABLE_PARTS.strip().splitlines())
_CODAS += [""] * 14


def world_of(text: str) -> str:
    """Return the world that a word or a number, as written, belongs to; upper and lower case are one word."""
    return _WORLD_OF_REMAINDER[crc32(text.lower().encode()) % len(_WORLD_OF_REMAINDER)]


def word(random: Random, world: str, max_letters: int = 9) -> str:
    """Return an invented lower-case word of two or three syllables (4 to `max_letters` letters) from `world`."""
    while True:
        num_syllables = random.choice((2, 2, 3))
        letters = "".join(random.choice(part) for _ in range(num_syllables) for part in (_ONSETS, _VOWELS, _CODAS))
        if 4 <= len(letters) <= max_letters and world_of(letters) == world:
            return letters


def name(random: Random, world: str) -> str:
    """Return a capitalised invented name; one in six has two words, and both belong to `world`."""
    num_words = 2 if random.random() < 1 / 6 else 1
    return " ".join(word(random, world).capitalize() for _ in range(num_words))


def integer(random: Random, world: str, max_digits: int = 4) -> int:
    """Return an integer of two to `max_digits` digits from `world`."""
    while True:
        value = random.randrange(10, 10 ** random.randrange(2, max_digits + 1))
        if world_of(str(value)) == world:
            return value


def decimal(random: Random, world: str) -> float:
    """Return a number with one digit behind the point, between 1.1 and 999.9, from `world`."""
    while True:
        value = float(f"{random.randrange(1, 10 ** random.choice((1, 2, 3)))}.{random.randrange(1, 10)}")
        if world_of(str(value)) == world:
            return value
