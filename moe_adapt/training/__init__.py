"""Task and stream training on Lightning: data modules, modules, callbacks, the command line."""

from moe_adapt.extras import require

require("moe_adapt.training", "lightning", "torchmetrics", "datasets")
