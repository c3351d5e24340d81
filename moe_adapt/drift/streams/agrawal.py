"""MOA's Agrawal generator: loan applications, ten rules that decide whether one is granted.

The label is decided before the values are perturbed. One quirk of MOA is part of the definition: the value of
a house is perturbed within its range and then clipped to 135,000, so most rows read exactly 135,000.

Reference: Agrawal, Imielinski, Swami, Database Mining: A Performance Perspective, TKDE 1993. River's
generator of this name inverts labels in some functions and differs in ranges; this one follows MOA. Functions
1, 2 and 4 were compared with MOA's rows, the others were written from the rules alone.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

from moe_adapt.drift.streams.base import Concept, Row
from moe_adapt.drift.streams.java_random import JavaRandom

__all__ = ["Agrawal"]


class _Person(NamedTuple):
    salary: float
    commission: float
    age: int
    elevel: int
    car: int
    zipcode: int
    hvalue: float
    hyears: int
    loan: float


def _band(age: int) -> int:
    """0 below 40 years, 1 below 60, else 2."""
    return 0 if age < 40 else 1 if age < 60 else 2


def _within(value: float, low: float, high: float) -> bool:
    return low * 1000 <= value <= high * 1000


_SALARIES = ((50, 100), (75, 125), (25, 75))
_LEVELS = ((0, 1), (1, 2, 3), (2, 3, 4))


def _disposable(person: _Person) -> float:
    return 2 * (person.salary + person.commission) / 3


def _in_group_a(function: int, person: _Person) -> bool:
    band = _band(person.age)
    match function:
        case 1:
            return band != 1
        case 2:
            return _within(person.salary, *_SALARIES[band])
        case 3:
            return person.elevel in _LEVELS[band]
        case 4:
            known = person.elevel in _LEVELS[band]
            ranges = (((25, 75), (50, 100)), ((50, 100), (75, 125)), ((50, 100), (25, 75)))[band]
            return _within(person.salary, *ranges[0 if known else 1])
        case 5:
            inside = _within(person.salary, *_SALARIES[band])
            ranges = (((100, 300), (200, 400)), ((200, 400), (300, 500)), ((300, 500), (100, 300)))[band]
            return _within(person.loan, *ranges[0 if inside else 1])
        case 6:
            return _within(person.salary + person.commission, *_SALARIES[band])
        case 7:
            return _disposable(person) - person.loan / 5 - 20000 > 0
        case 8:
            return _disposable(person) - 5000 * person.elevel - 20000 > 0
        case 9:
            return _disposable(person) - 5000 * person.elevel - person.loan / 5 - 10000 > 0
        case _:
            equity = person.hvalue * (person.hyears - 20) / 10 if person.hyears >= 20 else 0.0
            return _disposable(person) - 5000 * person.elevel + equity / 5 - 10000 > 0


class Agrawal(Concept):
    """Loan applications.

    Args:
        function: The rule, 1 to 10.
        perturbation: Largest change of a value, as a share of its range.
        seed: Seed of the rows.
    """

    features = _Person._fields
    nominal = frozenset({"elevel", "car", "zipcode"})

    def __init__(self, function: int = 1, perturbation: float = 0.05, seed: int = 1) -> None:
        self.function, self.perturbation, self.seed = function, perturbation, seed

    def __iter__(self) -> Iterator[Row]:
        random = JavaRandom(self.seed)

        def perturbed(value: float, low: float, high: float, span: float) -> float:
            moved = value + span * (2 * (random.uniform() - 0.5)) * self.perturbation
            return min(max(moved, low), high)

        def whole(value: int, low: int, high: int) -> int:
            return math.floor(perturbed(value, low, high, high - low) + 0.5)

        while True:
            person = _draw(random)
            label = 0 if _in_group_a(self.function, person) else 1
            if self.perturbation > 0:
                salary = perturbed(person.salary, 20000, 150000, 130000)
                paid = person.commission > 0
                commission = perturbed(person.commission, 10000, 75000, 65000) if paid else 0.0
                person = person._replace(
                    salary=salary,
                    commission=commission,
                    age=whole(person.age, 20, 80),
                    hvalue=perturbed(person.hvalue, 0, 135000, (9 - person.zipcode) * 100000),
                    hyears=whole(person.hyears, 1, 30),
                    loan=perturbed(person.loan, 0, 500000, 500000),
                )
            yield list(person), label


def _draw(random: JavaRandom) -> _Person:
    salary = 20000 + 130000 * random.uniform()
    commission = 0.0 if salary >= 75000 else 10000 + 65000 * random.uniform()
    age = 20 + random.integer(61)
    elevel, car, zipcode = random.integer(5), random.integer(20), random.integer(9)
    hvalue = (9 - zipcode) * 100000 * (0.5 + random.uniform())
    hyears = 1 + random.integer(30)
    return _Person(salary, commission, age, elevel, car, zipcode, hvalue, hyears, random.uniform() * 500000)
