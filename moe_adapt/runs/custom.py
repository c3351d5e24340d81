"""``--custom_modules FILE.py``: import a user's own files, so that their classes and components resolve.

The files are imported before any option is parsed. A file ``routers/mine.py`` becomes the module ``mine``; a
class in it is then named by its bare name or as ``mine.ClassName``, in flags and in YAML alike.
"""

import argparse
import importlib.util
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from moe_adapt.errors import UserError
from moe_adapt.reading import read_yaml
from moe_adapt.runs.config_names import CONFIG_FILE, resolve_config
from moe_adapt.runs.trust import check_trusted, what_runs_code

__all__ = ["import_custom_modules", "split_custom_modules"]


def split_custom_modules(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take the custom modules, named directly or in a configuration, out of the arguments.

    Args:
        argv: The arguments after the sub-command's name.

    Returns:
        The files' absolute paths, and the other arguments.
    """
    scan = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    scan.add_argument("--custom_modules", action="append", default=[])
    flags, rest = scan.parse_known_args(list(argv))
    scan.add_argument("-c", "--config", action="append", default=[])
    configs = scan.parse_known_args(rest)[0].config
    listed = [path for name in configs for path in _listed_in(resolve_config(name))]
    files = [str(Path(path).resolve()) for path in [*listed, *flags.custom_modules]]
    return list(dict.fromkeys(files)), rest


def _listed_in(config: Path) -> list[str]:
    """Return the custom modules of a configuration, after checking that it may run what it names.

    A configuration that a user wrote is the user's own word; one that a run saved came with a folder.
    """
    content = read_yaml(config, "a configuration")
    if content is None:
        return []
    if not isinstance(content, dict):
        raise UserError(
            f"{config} should hold options such as 'model:' and 'data:', but holds {content!r:.80}."
        )
    if config.name == CONFIG_FILE or any("trust_remote_code" in risk for risk in what_runs_code(content)):
        check_trusted(config, content)
    listed = content.get("custom_modules") or []
    if not isinstance(listed, list) or not all(isinstance(path, str) for path in listed):
        raise UserError(f"{config}: custom_modules is a list of Python files, got {listed!r:.80}.")
    return listed


def _other_module(name: str, path: Path) -> bool:
    """Return whether `name` would import something else than the file at `path`."""
    spec = importlib.util.find_spec(name)
    return spec is not None and Path(spec.origin or "").resolve() != path.resolve()


def import_custom_modules(paths: Iterable[str]) -> None:
    """Import every file under its stem as the module's name; a file that is already imported is left alone.

    Raises:
        UserError: If a file is missing or not Python, if its name hides a module, or if importing fails.
    """
    for path in map(Path, paths):
        if path.suffix != ".py" or not path.is_file():
            raise UserError(f"--custom_modules expects a Python file, but {str(path)!r} is not one.")
        name = path.stem
        loaded = sys.modules.get(name)
        if loaded is not None and Path(getattr(loaded, "__file__", None) or "").resolve() == path.resolve():
            continue
        if loaded is not None or _other_module(name, path):
            raise UserError(
                f"the custom module {path} hides the module {name!r}: give the file another name."
            )
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as problem:
            del sys.modules[name]
            reason = f"{type(problem).__name__}: {problem}"
            raise UserError(f"importing the custom module {path} failed with {reason}.") from problem
