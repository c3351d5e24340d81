"""Groups of customers that agree: how well each one's expert serves the others says who belongs together."""

from moe_adapt.training.groups.clusters import Clusters, agreement, cluster_losses, distances_of, silhouettes
from moe_adapt.training.groups.cross import cross_losses
from moe_adapt.training.groups.grouping import Grouping

__all__ = [
    "Clusters",
    "Grouping",
    "agreement",
    "cluster_losses",
    "cross_losses",
    "distances_of",
    "silhouettes",
]
