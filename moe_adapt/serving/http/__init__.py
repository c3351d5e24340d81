"""An HTTP server: OpenAI's chat completions, a model list, classification, a page for trying it."""

from moe_adapt.serving.http.app import Limits, make_app
from moe_adapt.serving.http.engine import Engine

__all__ = ["Engine", "Limits", "make_app"]
