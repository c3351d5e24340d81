"""What is installed is what is here: wheels and editable installs hold every module and configuration."""

import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PIP = ["-m", "pip", "--disable-pip-version-check", "--quiet"]

pytestmark = pytest.mark.slow


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy, because building leaves files behind."""
    copy = tmp_path / "source"
    for folder in ("moe_adapt", "configs"):
        shutil.copytree(REPOSITORY / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, copy / name)
    return copy


def expected(source: Path) -> set[str]:
    """The files to install, as paths in site-packages."""
    package = source / "moe_adapt"
    modules = [*package.rglob("*.py"), *package.rglob("costs/*.json"), package / "py.typed"]
    configs = [*(source / "configs").rglob("*.yaml"), source / "configs" / "__init__.py"]
    return {path.relative_to(source).as_posix() for path in modules} | {
        f"moe_adapt/{path.relative_to(source).as_posix()}" for path in configs
    }


def test_wheel_holds_everything_and_nothing_else(source, tmp_path):
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run([sys.executable, *PIP, *build], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if ".dist-info/" not in name} == expected(source)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_editable_install_finds_the_configurations(source, tmp_path):
    environment = tmp_path / "environment"
    venv.create(environment, system_site_packages=True, with_pip=False)
    (packages,) = environment.glob("lib/python*/site-packages")
    outer = [path for path in sys.path if path.endswith("site-packages")]
    packages.joinpath("outer.pth").write_text("\n".join(outer) + "\n")
    python = str(environment / "bin" / "python")
    install = [
        "install",
        "--no-deps",
        "--no-build-isolation",
        "--ignore-installed",
        "--editable",
        str(source),
    ]
    subprocess.run([python, *PIP, *install], check=True, cwd=tmp_path)
    script = (
        "import moe_adapt.configs\n"
        "from moe_adapt.runs.config_names import packaged_configs\n"
        "print(moe_adapt.__file__, *packaged_configs())"
    )
    done = subprocess.run([python, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    where, *found = done.stdout.split()
    assert Path(where).is_relative_to(source)
    root = source / "configs"
    assert set(found) == {path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml")}
