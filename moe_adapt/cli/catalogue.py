"""What registries hold, read from the package's source: names and first lines without importing torch."""

import ast
import inspect
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

__all__ = ["catalogue"]


def catalogue(target: str, by_class: bool = False) -> dict[str, str]:
    """Return name -> first line of the docstring for every class that a registry of ours gets at import.

    Args:
        target: The registry, as ``package:NAME``.
        by_class: Whether to name the classes themselves instead of what they are registered as.
    """
    package, _, registry = target.partition(":")
    found = find_spec(package)
    assert found is not None and found.origin is not None
    names: dict[str, str] = {}
    for path in sorted(Path(found.origin).parent.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        if f"@{registry}.register(" not in source:
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef):
                first = inspect.cleandoc(ast.get_docstring(node) or "").split("\n")[0]
                names |= {node.name if by_class else name: first for name in _registered(node, registry)}
    return names


def _registered(node: ast.ClassDef, registry: str) -> Iterator[str]:
    """Yield the names that a class is registered under."""
    for decorator in node.decorator_list:
        if not isinstance(decorator, ast.Call) or ast.unparse(decorator.func) != f"{registry}.register":
            continue
        if isinstance(decorator.args[0], ast.Constant):
            yield str(decorator.args[0].value)
