"""Push an exported folder to the Hugging Face Hub, in one commit, and fetch one from there.

The whole folder goes up with our own model card (`push_to_hub` of a model would overwrite it with a generic
one). What fails is told in one sentence; the local folder is never touched.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    validate_repo_id,
)

from moe_adapt.errors import UserError
from moe_adapt.hub.folder import MARKS

__all__ = ["SCHEME", "fetch_folder", "looks_like_repository", "push_folder", "repository"]

#: What marks a target or source as a repository on the Hub: ``hf://user/name``.
SCHEME = "hf://"

#: The files of an export, in a repository as in a folder.
FILES = ("README.md", "*.json", "*.safetensors", "*.png")


def repository(address: str) -> str:
    """Return the ``user/name`` of an address, with or without ``hf://``.

    Args:
        address: The address.

    Raises:
        UserError: If it is no name of a repository.

    >>> repository("hf://someone/intents")
    'someone/intents'
    """
    name = address.removeprefix(SCHEME)
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"{name!r} is no name of a repository: {str(error).splitlines()[0]}") from error
    if name.count("/") != 1:
        raise UserError(f"a repository is called user/name, not {name!r}.")
    return name


def looks_like_repository(address: str) -> bool:
    """Return whether an address that is no folder here can be a repository on the Hub.

    >>> looks_like_repository("someone/intents"), looks_like_repository("/tmp/intents")
    (True, False)
    """
    if address.startswith(SCHEME):
        return True
    return (
        not Path(address).exists() and re.fullmatch(r"[\w.-]*\w[\w.-]*/[\w.-]*\w[\w.-]*", address) is not None
    )


def push_folder(
    folder: str | Path,
    to: str,
    *,
    private: bool = False,
    message: str | None = None,
    token: str | None = None,
) -> str:
    """Upload an exported folder as one commit; files of an earlier export that it has not are removed.

    Args:
        folder: The folder that an export wrote.
        to: The repository, ``user/name``; it is made if there is none.
        private: Whether a new repository is private.
        message: The commit's message.
        token: Access token; None takes the one of ``hf auth login`` or ``HF_TOKEN``.

    Returns:
        The address of the commit.

    Raises:
        UserError: If the folder is no export, or the Hub refuses or cannot be reached.
    """
    folder, name = Path(folder), repository(to)
    if not any((folder / mark).is_file() for mark in MARKS):
        raise UserError(f"{folder} is no exported adapter; push a folder that `moe-adapt export` wrote.")
    api = HfApi(endpoint=constants.ENDPOINT, token=token)
    with _told_in_one_sentence(name, f"; {folder} is complete and can be pushed again"):
        api.create_repo(name, private=private or None, exist_ok=True)
        commit = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            allow_patterns=list(FILES),
            delete_patterns=list(FILES[1:]),
            commit_message=message or f"Upload {folder.name} with moe-adapt",
        )
    return str(commit.commit_url)


def fetch_folder(address: str, revision: str | None = None, token: str | None = None) -> Path:
    """Download an adapter into the Hub's cache and return its folder there.

    Args:
        address: ``user/name``, with or without ``hf://``.
        revision: Branch, tag or commit; a commit pins the adapter for good. None takes the main branch.
        token: Access token, for private repositories.

    Raises:
        UserError: If there is no such repository or revision, it may not be read, a file's name leads out of
            its folder, or the Hub cannot be reached.
    """
    name = repository(address)
    with _told_in_one_sentence(name, ""):
        path = snapshot_download(
            name, revision=revision, token=token, allow_patterns=list(FILES), endpoint=constants.ENDPOINT
        )
    return Path(path)


@contextmanager
def _told_in_one_sentence(name: str, comfort: str) -> Iterator[None]:
    bars = sys.stderr.isatty() or are_progress_bars_disabled()
    if not bars:
        disable_progress_bars()
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        sentence = _sentence(error, name)
        if sentence is None:
            raise
        raise UserError(f"{sentence}{comfort}.") from error
    finally:
        if not bars:
            enable_progress_bars()


def _sentence(error: Exception, name: str) -> str | None:
    if isinstance(error, LocalTokenNotFoundError):
        return f"{name} needs an access token; run `hf auth login` or set HF_TOKEN"
    if isinstance(error, RevisionNotFoundError):
        return f"{name} has no such revision; look at its commits and tags on the Hub"
    if isinstance(error, GatedRepoError):
        return f"{name} is gated; ask for access on its page and log in with `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"there is no repository {name} that your access token opens; check the name, and the token "
            "(`hf auth login`)"
        )
    if isinstance(error, HfHubHTTPError):
        return _status_sentence(getattr(error.response, "status_code", 0), name)
    if isinstance(error, ValueError):  # what the client refuses: a file name that leads out of its folder
        return f"the Hub's answer for {name} is not used: {str(error).splitlines()[0].rstrip('.')}"
    transport = {cls.__name__ for cls in type(error).__mro__}
    if isinstance(error, OfflineModeIsEnabled | LocalEntryNotFoundError) or "TransportError" in transport:
        return (
            f"the Hub ({constants.ENDPOINT}) cannot be reached for {name}; check the network, HF_ENDPOINT "
            "and HF_HUB_OFFLINE"
        )
    return None


def _status_sentence(status: int, name: str) -> str:
    if status == 401:
        return f"the Hub does not accept the access token for {name}; run `hf auth login` again"
    if status == 403:
        return f"the access token may not do this with {name}; take one with write access to it"
    if status == 409:
        return f"somebody else changed {name} at the same moment; try again"
    if status == 507:
        return f"the Hub has no space left for {name}; free some in your account's settings"
    return f"the Hub failed with status {status} for {name} and nothing was changed there; try again later"
