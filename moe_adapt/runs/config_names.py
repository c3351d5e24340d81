"""Short names of configurations: ``--config routed_lora/dynmole`` finds a file on disk or a packaged one.

A name is tried as a path, then as a path with ``.yaml`` added, then the same two ways among the files that
come with the package (``moe_adapt.configs``). Files on disk win, so a local copy overrides the packaged one.
"""

from importlib.resources import files
from pathlib import Path

from moe_adapt.errors import UserError, did_you_mean

__all__ = ["CONFIG_FILE", "config_root", "first_line", "packaged_configs", "resolve_config"]


#: The configuration that a run saves in its folder.
CONFIG_FILE = "moe_adapt_config.yaml"


def config_root() -> Path:
    """Return the folder of the packaged configurations."""
    return Path(str(files("moe_adapt.configs")))


def packaged_configs() -> dict[str, Path]:
    """Return short name -> file for every packaged configuration, sorted by name."""
    root = config_root()
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.rglob("*.yaml"))}


def first_line(path: Path) -> str:
    """Return the first comment line of a configuration, without its ``#``: its description."""
    with path.open(encoding="utf-8") as lines:
        return next(lines, "").lstrip("# ").strip()


def resolve_config(name: str) -> Path:
    """Return the file that a ``--config`` value stands for.

    Args:
        name: A path, or a short name such as ``task/causal_lm``; the ending ``.yaml`` may be left out.

    Raises:
        UserError: If there is no such file on disk or in the package; the message names the near ones.
    """
    packaged = packaged_configs()
    candidates = [Path(name), Path(f"{name}.yaml")]
    short = name.removesuffix(".yaml")
    if short in packaged:
        candidates.append(packaged[short])
    for path in candidates:
        if path.is_file():
            return path
    leaves = {key.rsplit("/", 1)[-1]: key for key in packaged}
    hint = did_you_mean(short, packaged) or (f" Did you mean {leaves[short]!r}?" if short in leaves else "")
    raise UserError(
        f"there is no configuration {name!r}, neither a file nor a packaged one.{hint} "
        "`moe-adapt list configs` shows the packaged ones."
    )
