"""One-place changes of a module's syntax tree, each of which a test should notice.

Left alone are texts, signs of numbers (the last dimension of a matrix is its second, too), annotations,
decorators, defaults of arguments (choices, not formulas), and what only words a message: everything inside
`raise`, `UserError`, `warn` and loggers.
"""

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

__all__ = ["Mutant", "count", "mutant"]

COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
ARITHMETIC = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
#: Functions and methods that are taken for each other.
CALLS = {
    "min": "max", "amin": "amax", "argmin": "argmax", "any": "all", "sum": "mean", "log": "exp",
    "sort": "argsort", "floor": "ceil", "abs": "square", "minimum": "maximum", "softmax": "sigmoid",
}  # fmt: skip
CALLS |= {other: name for name, other in CALLS.items()}
#: Calls whose arguments only word a message.
WORDS = {"UserError", "warn", "debug", "info", "warning", "TypeVar", "isinstance", "getLogger"}


@dataclass(frozen=True)
class Mutant:
    """A changed module.

    Attributes:
        line: Where it was changed.
        before: The smallest changed expression or statement.
        after: What it became.
        tree: The module.
    """

    line: int
    before: str
    after: str
    tree: ast.Module


def count(source: str) -> int:
    """Return how many mutants a module has."""
    return sum(_changed(node) is not None for node in _places(ast.parse(source)))


def mutant(source: str, number: int) -> Mutant:
    """Return a mutant of a module by its number, in the order of the source."""
    tree = ast.parse(source)
    pairs = ((node, other) for node in _places(tree) if (other := _changed(node)) is not None)
    node, other = next(islice(pairs, number, None))
    before, after = ast.unparse(node), ast.unparse(other)
    _replace(tree, node, other)
    return Mutant(node.lineno, before, after, ast.fix_missing_locations(tree))


def _places(node: ast.AST) -> Iterator[ast.expr | ast.stmt]:
    """Yield the nodes that may change, outside of what only words or declares something."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params", "defaults", "kw_defaults"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or _only_words(child):
                continue
            if isinstance(child, ast.expr | ast.stmt):
                yield child
            yield from _places(child)


def _only_words(node: ast.AST) -> bool:
    if isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom | ast.Assert):
        return True
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
        return True
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return True
    return isinstance(node, ast.Call) and _called(node) in WORDS


def _called(node: ast.Call) -> str:
    return ast.unparse(node.func).rpartition(".")[2]


def _changed(node: ast.expr | ast.stmt) -> ast.expr | ast.stmt | None:
    """Return what takes the place of a node, or nothing; the node itself stays as it is."""
    other = copy.copy(node)
    match other:
        case ast.Compare(ops=[op]) if type(op) in COMPARISONS:
            other.ops = [COMPARISONS[type(op)]()]
        case ast.BinOp(op=op) if type(op) in ARITHMETIC and not _of_texts(other):
            other.op = ARITHMETIC[type(op)]()
        case ast.AugAssign(op=op) if type(op) in ARITHMETIC:
            other.op = ARITHMETIC[type(op)]()
        case ast.BoolOp(op=op):
            other.op = ast.Or() if isinstance(op, ast.And) else ast.And()
        case ast.UnaryOp(operand=operand) if not isinstance(operand, ast.Constant):
            return operand
        case ast.Constant(value=bool(value)):
            other.value = not value
        case ast.Constant(value=int(value)):
            other.value = value + 1
        case ast.Constant(value=float(value)):
            other.value = 2 * value if value else 1.0
        case ast.IfExp():
            other.body, other.orelse = other.orelse, other.body
        case ast.If():
            other.test = ast.UnaryOp(ast.Not(), other.test)
        case ast.Call(func=ast.Attribute(value=value, attr=name)) if name in CALLS:
            other.func = ast.Attribute(value, CALLS[name], ast.Load())
        case ast.Call(func=ast.Name(id=name)) if name in CALLS and name not in ("log", "exp", "sum"):
            other.func = ast.Name(CALLS[name], ast.Load())
        case ast.Slice(lower=lower, upper=upper, step=None) if (lower is None) != (upper is None):
            other.lower, other.upper = upper, lower
        case ast.Expr(value=ast.Call()):
            return ast.Pass()
        case _:
            return None
    return other


def _of_texts(node: ast.BinOp) -> bool:
    texts = (side for side in (node.left, node.right) if isinstance(side, ast.JoinedStr | ast.Constant))
    return any(isinstance(side, ast.JoinedStr) or isinstance(side.value, str) for side in texts)


def _replace(tree: ast.AST, old: ast.AST, new: ast.AST) -> None:
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, name, new)
            elif isinstance(value, list):
                for place, child in enumerate(value):
                    if child is old:
                        value[place] = new
