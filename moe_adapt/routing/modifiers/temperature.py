"""Softmax temperature: logits divided by a constant."""

from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.routing.base import MODIFIERS, LogitModifier, Logits
from moe_adapt.routing.context import RouteContext

__all__ = ["Temperature"]


@MODIFIERS.register("temperature")
class Temperature(LogitModifier):
    """Divides the logits by `temperature`: above 1 routing becomes softer, below 1 sharper.

    Args:
        temperature: Positive number.

    Raises:
        UserError: If `temperature` is not positive.
    """

    reference = "no paper: the temperature of a softmax"
    reads_input = False

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        if temperature <= 0:
            raise UserError(f"the temperature must be positive, got {temperature}.")
        self.temperature = temperature

    def forward(self, logits: Logits, x: Tensor, ctx: RouteContext) -> Logits:
        """Return the scaled logits."""
        return logits._replace(
            select=logits.select / self.temperature, weight=logits.weight / self.temperature
        )
