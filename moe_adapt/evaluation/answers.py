r"""Is an answer right exactly, up to its form, or by likelihood; how much of "forgetting" is form?

A model that answers "a" where the reference says "A" has not forgotten the question, only the format of
answers. Three verdicts on the same test sample tell the two apart:

* ``exact``: the generated text equals the reference but for surrounding space;
* ``normalised``: equal after lower-casing and removing punctuation, articles and repeated space;
* ``likelihood``: the reference has the highest likelihood among the choices, whatever would be generated.

With `R` the accuracy under a verdict, the format artefact of task `j` is the part of its drop that a kinder
verdict does not see:

$$(R^{exact}_{jj} - R^{exact}_{Tj}) - (R^{likelihood}_{jj} - R^{likelihood}_{Tj})$$

Reference:
    SEFE (superficial and essential forgetting) names the effect; the verdicts and the difference are ours.
"""

import re
import string

__all__ = ["VERDICTS", "exact_match", "format_artefact", "normalise", "normalised_match"]

#: From the strictest to the kindest.
VERDICTS = ("exact", "normalised", "likelihood")

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b(?=\s+\S)")


def normalise(answer: str) -> str:
    """Return an answer without case, punctuation, leading articles and repeated space.

    An article that is the whole answer stays: "A" may be a choice.

    >>> normalise(" The  Red-Fox."), normalise("A.")
    ('redfox', 'a')
    """
    lowered = answer.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", lowered).split())


def exact_match(answer: str, reference: str) -> bool:
    """Return whether an answer is the reference, but for surrounding space."""
    return answer.strip() == reference.strip()


def normalised_match(answer: str, reference: str) -> bool:
    """Return whether an answer is the reference up to its form."""
    return normalise(answer) == normalise(reference)


def format_artefact(strict: tuple[float, float], kind: tuple[float, float]) -> float:
    """Return how much of a task's drop is the format of answers.

    Args:
        strict: Accuracy right after the task and at the end, by a strict verdict.
        kind: The same by a kinder one.

    >>> round(format_artefact((0.9, 0.2), (0.9, 0.8)), 3)
    0.6
    """
    return (strict[0] - strict[1]) - (kind[0] - kind[1])
