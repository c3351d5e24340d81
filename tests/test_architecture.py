"""The walls between rooms, and what holds for every module. See docs/architecture.md."""

import ast
import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

import moe_adapt
from moe_adapt.extras import advice
from tests.imports import circles, import_graph

ROOT = Path(moe_adapt.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
MODULES = sorted(
    found.name
    for found in pkgutil.walk_packages([str(ROOT)], "moe_adapt.")
    if not found.name.startswith("moe_adapt.configs")
)

GROUND = {
    "errors",
    "extras",
    "files",
    "manifest",
    "processes",
    "reading",
    "registry",
    "signatures",
    "textfiles",
}
ROUTING = {"kernels", "experts", "routing", *GROUND}
TUNER = {"__init__", "evaluation", "tuner", *ROUTING}
HUB = {"backbones", "data", "optim", "streams", "hub", *TUNER}
TRAINING = {"learners", *HUB}
RUNS = {"training", "drift", *TRAINING}
#: What a room may import of this package, beside itself.
MAY_IMPORT = {
    "errors": set(),
    "renamed": set(),
    "files": {"errors"},
    "reading": {"errors"},
    "textfiles": {"errors", "reading"},
    "kernels": {"errors"},
    "__init__": {"errors", "renamed"},
    "extras": {"errors"},
    "registry": {"errors"},
    "manifest": set(),
    "processes": set(),
    "signatures": set(),
    "evaluation": GROUND,
    "optim": GROUND,
    "experts": {"kernels", *GROUND},
    "routing": {"kernels", "experts", *GROUND},
    "tuner": {"evaluation", *ROUTING},
    "data": GROUND,
    "backbones": {"data", *TUNER},
    "streams": {"data", *GROUND},
    "hub": HUB - {"hub"},
    "learners": HUB,
    "drift": {"hub", "evaluation", *GROUND},
    "training": TRAINING,
    "runs": RUNS,
    "checks": {"runs", *RUNS},
    "serving": {"runs", *RUNS},
    "cli": {"runs", "serving", *RUNS},
    "demo": {"cli", "runs", *RUNS},
}
#: Upward imports inside functions, on purpose.
MAY_CLIMB = {"__init__.py": {"serving", "tuner"}}
#: Rooms that need nothing but torch.
LIGHT = {
    "__init__",
    "errors",
    "extras",
    "kernels",
    "manifest",
    "files",
    "processes",
    "reading",
    "textfiles",
    "registry",
    "signatures",
    "renamed",
    "evaluation",
    "experts",
    "routing",
    "optim",
}
HEAVY = {"datasets", "huggingface_hub", "lightning", "matplotlib", "peft", "river", "timm", "transformers"}


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield every imported module, and whether it is imported inside a function."""

    def walk(node: ast.AST, inside: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, inside) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: relative import"
                yield child.module or "", inside
            yield from walk(child, inside or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)))

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), False)


def target_room(module: str) -> str | None:
    package, _, rest = module.partition(".")
    return (rest.partition(".")[0] or "__init__") if package == "moe_adapt" else None


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_only_from_below(path):
    own = room(path)
    climbing = MAY_CLIMB.get(path.relative_to(ROOT).as_posix(), set())
    for module, inside in imports(path):
        target = target_room(module)
        if target is None or target == own:
            continue
        assert target in MAY_IMPORT[own] or (inside and target in climbing), f"{own} must not import {module}"


def test_every_room_has_a_floor():
    assert {room(path) for path in FILES} <= MAY_IMPORT.keys()
    order = list(MAY_IMPORT)
    for own, below in MAY_IMPORT.items():
        assert all(order.index(other) < order.index(own) for other in below)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_foreign_imports(path):
    for module, inside in imports(path):
        package, _, private = module.partition(".")
        if package == "peft" and private:
            assert path == ROOT / "tuner" / "peft_plugin.py", f"{module}: only tuner/peft_plugin.py may"
        assert package != "matplotlib" or inside, "matplotlib is optional: import it inside functions"
        assert room(path) not in LIGHT or package not in HEAVY, f"{room(path)} needs nothing but torch"


@pytest.mark.parametrize("root", [ROOT, ROOT.parent / "benchmarks"], ids=lambda root: root.name)
def test_no_circle_of_imports(root):
    assert circles(import_graph(root)) == []


def test_circles_are_found(tmp_path):
    root = tmp_path / "package"
    root.mkdir()
    for name, text in {
        "__init__": "from package.low import x",
        "low": "def late():\n    from package import middle",
        "middle": "from package.low import x",
        "hinted": "if TYPE_CHECKING:\n    import package.typed",
        "typed": "import package.hinted",
    }.items():
        (root / f"{name}.py").write_text(text)
    expected = [f"package/{name}.py" for name in ("__init__", "low", "middle")]
    assert circles(import_graph(root)) == [expected]


def test_import_is_light():
    script = (
        "import json, sys, torch\n"
        "before = set(sys.modules)\n"
        "import moe_adapt\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(run.stdout)}
    assert loaded - sys.stdlib_module_names - {"moe_adapt", "torch"} == set()


@pytest.mark.parametrize("name", MODULES)
def test_module_is_whole(name):
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = advice(error.name or "", name)
        if missing is None:
            raise
        pytest.skip(str(missing))
    assert module.__doc__, "a module says what it is for"
    for public in getattr(module, "__all__", ()):
        value = getattr(module, public)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__, f"{public} has no docstring"


def test_every_folder_is_a_package():
    folders = {path.parent for path in FILES}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []
    assert {"moe_adapt." + ".".join(f.relative_to(ROOT).parts) for f in folders if f != ROOT} <= set(MODULES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_half_of_the_files_are_very_short():
    assert median(len(path.read_text(encoding="utf-8").splitlines()) for path in FILES) <= 120
