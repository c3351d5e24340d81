"""From River's dictionaries to arrays, for streams whose features and values appear and vanish.

Columns are append-only: what a column means never changes, so statistics and weights keep their places. New
names of one row are added as they come or, on demand, in a canonical order, so that the order of keys in a
dictionary does not matter.
A feature is nominal if it is declared so or if its first value is neither a number nor a date, and stays what
it is. Dates count seconds. None, NaN, NaT, pandas' NA and absence mean missing, and so does a number beyond
`LARGEST`: its square would overflow, and such numbers are marks, not measurements. A nominal column has at
most `MOST_VALUES` values: those that come later are treated as unknown ones, so that a column of identifiers
does not fill the memory.
"""

import math
from array import array
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from numbers import Number
from operator import getitem, itemgetter
from typing import Any

import numpy as np

from moe_adapt.errors import UserError

__all__ = ["LARGEST", "MOST_VALUES", "FeatureTable", "Row", "ordered", "present", "shown"]

MOST_VALUES = 1000
LARGEST = 1e100
_NO_NUMBERS = np.empty(0)


@dataclass(slots=True)
class Row:
    """One row in array form.

    Attributes:
        numbers: Values of the numeric columns [F], NaN where missing.
        codes: Value numbers of the nominal columns [G], -1 where missing, -2 for a value not seen in
            training.
        complete: Whether nothing is missing.
    """

    numbers: np.ndarray
    codes: list[int]
    complete: bool


def _canonical(name: Hashable) -> tuple[str, str]:
    return type(name).__name__, str(name)


def ordered(known: dict[Hashable, int]) -> dict[Hashable, int]:
    """Return a table of names sorted by name; names of several types by type first."""
    try:
        return dict(sorted(known.items(), key=lambda pair: pair[0]))  # type: ignore[arg-type, return-value]
    except TypeError:
        return dict(sorted(known.items(), key=lambda pair: _canonical(pair[0])))


def _missing(value: Any) -> bool:
    if value is None:
        return True
    try:
        return bool(value != value)
    except (TypeError, ValueError):  # pandas' NA is neither equal to itself nor not
        return type(value).__name__ == "NAType"


def _numeric(value: Any) -> bool:
    return isinstance(value, (Number, date, np.datetime64))


def present(x: Mapping[Hashable, Any]) -> Mapping[Hashable, Any]:
    """Return a row without what counts as missing; that is what River's learners take for missing."""
    gone = {name for name, value in x.items() if _missing(value) or _too_large(value)}
    return {name: value for name, value in x.items() if name not in gone} if gone else x


def _too_large(value: Any) -> bool:
    return isinstance(value, Number) and not abs(value) <= LARGEST  # type: ignore[arg-type]


def shown(value: Any) -> str:
    """Return a value for a message, a whole number of hundreds of digits in words."""
    too_long = isinstance(value, int) and abs(value) > LARGEST
    return "a whole number of more than a hundred digits" if too_long else repr(value)


class FeatureTable:
    """The columns known so far.

    Args:
        nominal: Names of features that are nominal although their values are numbers.
        canonical: Add the new names of a row in an order of their own.

    Attributes:
        numeric: Column of each numeric feature.
        nominal: Column of each nominal feature.
        values: Number of each value, per nominal column; n_values: the most values of a column.
    """

    def __init__(self, nominal: Iterable[Hashable] = (), canonical: bool = False) -> None:
        self.declared = frozenset(nominal)
        self.canonical = canonical
        self.numeric: dict[Hashable, int] = {}
        self.nominal: dict[Hashable, int] = {}
        self.values: list[dict[Hashable, int]] = []
        self.n_values = 0
        self._get_numbers = self._get_codes = None

    @property
    def n_columns(self) -> int:
        """Columns of both kinds."""
        return len(self.numeric) + len(self.nominal)

    def covers(self, x: Mapping[Hashable, Any], row: Row) -> bool:
        """Return whether `row`, as it was read from `x`, holds all that there is in it."""
        return row.complete and len(x) == self.n_columns

    def read(self, x: Mapping[Hashable, Any]) -> Row:
        """Return a row without learning from it: unknown features are ignored.

        Args:
            x: Values by feature name.

        Raises:
            UserError: If a numeric feature holds text or infinity.
        """
        numbers = _NO_NUMBERS
        try:
            if self._get_numbers:
                values = self._get_numbers(x)
                if not math.hypot(*values) <= LARGEST:  # one is NaN, infinite or too large
                    return self._read_slowly(x)
                numbers = np.frombuffer(array("d", values))
            codes: list[int] = list(map(getitem, self.values, self._get_codes(x))) if self._get_codes else []
        except (KeyError, TypeError, ValueError, OverflowError):
            return self._read_slowly(x)
        return Row(numbers, codes, True)

    def learn(self, x: Mapping[Hashable, Any]) -> Row:
        """Return a row after adding the features and values that are new.

        Raises:
            UserError: If a numeric feature holds text or infinity; nothing is added then.
        """
        if len(x) == self.n_columns:
            row = self.read(x)
            if row.complete:
                return row
        self._read_slowly(x)  # raises before anything is added
        fresh = [name for name in x if name not in self.numeric and name not in self.nominal]
        for name in fresh:
            _check_new(name, x[name], name in self.declared)
        for name in sorted(fresh, key=_canonical) if self.canonical else fresh:
            value = x[name]
            if _missing(value):
                continue
            if name in self.declared or not _numeric(value):
                self.nominal[name] = len(self.nominal)
                self.values.append({})
            elif not math.isnan(_number(name, value)):
                self.numeric[name] = len(self.numeric)
        for name, column in self.nominal.items():
            value, known = x.get(name), self.values[column]
            if not _missing(value) and len(known) < MOST_VALUES:
                known.setdefault(value, len(known))
        self.refresh()
        return self.read(x)

    def refresh(self) -> None:
        """Prepare for reading rows after columns were added."""
        self._get_numbers = _getter(list(self.numeric))
        self._get_codes = _getter(list(self.nominal))
        self.n_values = max((len(known) for known in self.values), default=0)

    def _read_slowly(self, x: Mapping[Hashable, Any]) -> Row:
        numbers = np.full(len(self.numeric), np.nan)
        for name, column in self.numeric.items():
            value = x.get(name)
            if not _missing(value):
                numbers[column] = _number(name, value)
        codes = []
        for name, column in self.nominal.items():
            value = x.get(name)
            codes.append(-1 if _missing(value) else self.values[column].get(_value(name, value), -2))
        complete = not np.isnan(numbers).any() and all(code >= 0 for code in codes)
        return Row(numbers, codes, complete)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if not k.startswith("_get")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.refresh()


def _getter(names: list[Hashable]) -> Any:
    if not names:
        return None
    if len(names) == 1:
        name = names[0]
        return lambda x: (x[name],)
    return itemgetter(*names)


def _check_new(name: Hashable, value: Any, declared: bool) -> None:
    """Raise for a value that a new column cannot begin with."""
    if declared or not _numeric(value):
        _value(name, value)
    elif not _missing(value):
        _number(name, value)


def _value(name: Hashable, value: Any) -> Hashable:
    try:
        hash(value)
    except TypeError:
        raise UserError(
            f"the feature {name!r} holds a {type(value).__name__}; "
            "a value is a number, a date, text or a truth value."
        ) from None
    return value


def _number(name: Hashable, value: Any) -> float:
    """Return a number, NaN for one beyond `LARGEST`."""
    if isinstance(value, (str, complex)) or not _numeric(value):
        raise UserError(
            f"the feature {name!r} was numeric and now holds {value!r}; convert it, or declare it nominal."
        )
    if isinstance(value, date):
        moment = value if isinstance(value, datetime) else datetime(value.year, value.month, value.day)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, np.datetime64):
        return float(value.astype("datetime64[ns]").astype(np.int64)) / 1e9
    try:
        number = float(value)
    except OverflowError:  # a whole number beyond the doubles
        return math.nan
    if math.isinf(number):
        raise UserError(f"the feature {name!r} is infinite; clip it, or leave it out where it is unknown.")
    return number if abs(number) <= LARGEST else math.nan
