"""Small changes of a text that leave its meaning: typos, capitals, an appended sentence.

Functions of text and seed, so that a changed row is the same in every run.
"""

import random
from collections.abc import Callable

__all__ = ["APPENDED", "PERTURBATIONS", "append", "typos", "upper"]

#: What `append` adds.
APPENDED = "By the way, the weather was mild and the train left on time."


def typos(text: str, seed: int, share: float = 0.2) -> str:
    """Return the text with two neighbouring letters exchanged in some of the longer words, one at least.

    Args:
        text: The text.
        seed: Decides which.
        share: Share of the words of four letters or more.

    >>> typos("please transfer money", seed=0, share=1.0)
    'pelase tranfser moeny'
    """
    draw = random.Random(f"{seed} {text}")
    words = text.split(" ")
    long = [number for number, word in enumerate(words) if len(word) >= 4]
    for number in draw.sample(long, min(len(long), max(1, round(share * len(long))))):
        word = words[number]
        place = draw.randrange(1, len(word) - 2)
        words[number] = word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    return " ".join(words)


def upper(text: str, seed: int) -> str:
    """Return the text in capitals."""
    return text.upper()


def append(text: str, seed: int) -> str:
    """Return the text with a sentence after it that has nothing to do with it."""
    return f"{text} {APPENDED}"


#: The changes by name; each takes a text and a seed.
PERTURBATIONS: dict[str, Callable[[str, int], str]] = {"typos": typos, "case": upper, "appended": append}
