"""Which file imports which, and the circles among them."""

import ast
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

__all__ = ["circles", "import_graph", "imported"]


def imported(path: Path) -> Iterator[str]:
    """Yield every module that a file imports at run time, inside functions too, by its full name.

    ``from package import name`` yields the package and ``package.name``, which may be a module.
    """

    def walk(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            yield from walk(child)

    return walk(ast.parse(path.read_text(encoding="utf-8")))


def import_graph(root: Path) -> dict[str, set[str]]:
    """Return file -> the files of `root` that it imports, as paths relative to the parent of `root`.

    A name counts as a path from the parent of `root`, or, as for scripts, from the importing file's folder.
    """
    files = {path.relative_to(root.parent) for path in root.rglob("*.py")}
    graph: dict[str, set[str]] = {}
    for path in sorted(files):
        found = set()
        for name in imported(root.parent / path):
            for start in (Path(), path.parent):
                stem = start.joinpath(*name.split("."))
                found |= {stem.with_suffix(".py"), stem / "__init__.py"} & files
        graph[path.as_posix()] = {other.as_posix() for other in found - {path}}
    return graph


def circles(graph: Mapping[str, Set[str]]) -> list[list[str]]:
    """Return the groups of two and more nodes that all reach one another (Tarjan's algorithm).

    >>> circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}})
    [['b', 'c']]
    """
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    open_nodes: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        number[node] = lowest[node] = len(number)
        open_nodes.append(node)
        for other in sorted(graph[node]):
            if other not in number:
                visit(other)
            if other in open_nodes:
                lowest[node] = min(lowest[node], lowest[other])
        if lowest[node] == number[node]:
            start = open_nodes.index(node)
            if len(open_nodes) - start > 1:
                found.append(sorted(open_nodes[start:]))
            del open_nodes[start:]

    for node in graph:
        if node not in number:
            visit(node)
    return found
