"""What a measurement was made with, without the folders of the machine that made it."""

import re
from typing import Any

__all__ = ["portable"]


def portable(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest whose command names folders by their options.

    >>> portable({"command": "cost.py --runs /home/somebody/runs --cells codes-0"})
    {'command': 'cost.py --runs RUNS --cells codes-0'}
    """
    command = re.sub(r"--(\w+) /\S+", lambda found: f"--{found[1]} {found[1].upper()}", manifest["command"])
    return manifest | {"command": command}
