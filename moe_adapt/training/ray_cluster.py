"""Connect to Ray, or start it on this machine."""

import os
from importlib import import_module
from typing import Any

from moe_adapt.errors import UserError
from moe_adapt.extras import require

__all__ = ["start_ray"]


def start_ray(user: str, address: str | None, cpus: int | None) -> Any:
    """Return the module ``ray``, connected.

    Args:
        user: What needs it, for messages.
        address: Address of a cluster; None starts Ray on this machine.
        cpus: How many CPUs it may use here; None for all.

    Raises:
        UserError: If Ray is not installed or the cluster cannot be reached.
    """
    require(user, "ray")
    ray = import_module("ray")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        options |= {"include_dashboard": False, "num_cpus": cpus}
    try:
        ray.init(address=address, **options)
    except Exception as error:  # Ray raises plain ones where its processes do not start in time
        where = address or "this machine"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(f"Ray cannot be reached on {where}: {reason}.") from error
    return ray
