"""The tests that are nearest to a module: those of its room that name most of what it defines."""

import ast
import re
from pathlib import Path

__all__ = ["nearest_tests"]


def _names(path: Path, module: str) -> set[str]:
    """Return the module's name, what it defines in public, and the short names that it registers."""
    found = {module}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            if not node.name.startswith("_"):
                found.add(node.name)
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).endswith(".register"):
                    found |= {str(word.value) for word in decorator.args if isinstance(word, ast.Constant)}
    return found


def nearest_tests(root: Path, module: str, most: int = 4) -> list[Path]:
    """Return the nearest test files of a module: in its room, else in its folder, else anywhere.

    Args:
        root: The repository.
        module: Full name of the module.
        most: Most files.
    """
    parts = module.split(".")[1:]
    path = root.joinpath("moe_adapt", *parts).with_suffix(".py")
    patterns = [re.compile(rf"\b{re.escape(name)}\b") for name in _names(path, module)]
    mirror = root.joinpath("tests", *parts[:-1])

    def ranked(folder: Path, least: int = 1) -> list[Path]:
        scores = []
        for file in sorted(folder.rglob("test_*.py")):
            text = file.read_text(encoding="utf-8")
            hits = sum(bool(pattern.search(text)) for pattern in patterns)
            score = hits + 2 * (file.stem == f"test_{parts[-1]}")
            scores.append((-score, file))
        return [file for score, file in sorted(scores)[:most] if -score >= least]

    return ranked(root / "tests" / parts[0]) or ranked(mirror, 0) or ranked(root / "tests")
