"""The run to export and the Hub to push to are those of the hub's tests."""

from tests.hub.conftest import hub, run

__all__ = ["hub", "run"]
