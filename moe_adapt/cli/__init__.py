"""The command line: ``moe-adapt fit | validate | test | predict | export | trace | list | doctor | demo``.

`main` looks the sub-command up in a table and imports only what that one needs, so that ``moe-adapt --help``
answers at once.
"""

from moe_adapt.cli.main import main

__all__ = ["main"]
