"""The mutation run: what is changed, what is left alone, and that a change that no test reads survives."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = '''
"""A module."""
__all__ = ["mean"]

def mean(values: list[int | float], start: int = 5, *, cut: bool = True) -> float:
    """Return 1 + 2."""
    if not values and cut:
        raise UserError(f"{1 + 2}" + "x")
    total = sum(values[1:])
    log(total)
    return total / 2 if total > 0.5 else values.max()
'''


@pytest.fixture
def mutation(monkeypatch):
    """The modules of the mutation run, importable as its scripts import them."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "mutants"))
    import nearest
    import operators

    return operators, nearest


def test_every_change_is_in_one_place_and_none_in_what_only_words_or_declares(mutation):
    operators, _ = mutation
    found = [operators.mutant(SOURCE, number) for number in range(operators.count(SOURCE))]
    changes = {(mutant.before.partition("\n")[0], mutant.after.partition("\n")[0]) for mutant in found}
    assert changes == {
        ("if not values and cut:", "if not (not values and cut):"),
        ("not values and cut", "not values or cut"),
        ("not values", "values"),
        ("1:", ":1"),
        ("1", "2"),
        ("log(total)", "pass"),
        ("total / 2 if total > 0.5 else values.max()", "values.max() if total > 0.5 else total / 2"),
        ("total / 2", "total * 2"),
        ("2", "3"),
        ("total > 0.5", "total >= 0.5"),
        ("0.5", "1.0"),
        ("values.max()", "values.min()"),
    }
    plain = ast.unparse(ast.parse(SOURCE)).splitlines()
    for mutant in found:
        changed = ast.unparse(mutant.tree).splitlines()
        assert sum(one != other for one, other in zip(plain, changed, strict=True)) == 1


def test_a_number_names_the_same_mutant_every_time(mutation):
    operators, _ = mutation
    one, other = operators.mutant(SOURCE, 3), operators.mutant(SOURCE, 3)
    assert (one.line, one.before, one.after) == (other.line, other.before, other.after)


def test_the_nearest_tests_are_those_that_name_what_a_module_defines(mutation):
    _, nearest = mutation
    found = nearest.nearest_tests(ROOT, "moe_adapt.optim.guard")
    assert found[0] == ROOT / "tests" / "optim" / "test_guard.py"
    assert len(found) <= 4
    assert nearest.nearest_tests(ROOT, "moe_adapt.learners.ewc")[0].name == "test_ewc.py"
    assert nearest.nearest_tests(ROOT, "moe_adapt.hub.card")
