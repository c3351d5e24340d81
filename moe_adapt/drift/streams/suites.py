"""The field's named drift streams, at any length.

Suite `arf` (canonical): the definitions of the adaptive random forest's authors: LED (drift of 1, 3, 5, 7
columns), SEA (functions 1, 2, 1, 4) and AGR (functions 1, 2, 1, 4), abrupt (`_a`, width 50) and gradual
(`_g`); RBF_m, RBF_f (5 classes, all 50 centroids moving by 1e-4 and 1e-3 per row); HYPER; RTG without drift.
They are 1,000,000 rows long with drifts at a quarter, half and three quarters; at other lengths the drifts
keep their relative place and the width of gradual ones its relative size. The speed of RBF and HYPER is per
row and is not scaled.

Suite `driftmoe`: the synthetic streams as DriftMoE's release defines them (arXiv 2507.18464), for comparison
with that paper: SEA functions 1, 2, 4, 1; RBF with 2 classes; drift centres 25,000 rows (2.5 %) early.
"""

from collections.abc import Callable
from itertools import pairwise

from moe_adapt.drift.streams.agrawal import Agrawal
from moe_adapt.drift.streams.base import Concept, DriftStream
from moe_adapt.drift.streams.generators import LED, LED_BAYES, SEA, Hyperplane
from moe_adapt.drift.streams.mixture import chain
from moe_adapt.drift.streams.random_tree import RandomTree
from moe_adapt.drift.streams.rbf import RandomRBF
from moe_adapt.errors import UserError, did_you_mean

__all__ = ["FULL_LENGTH", "SUITES", "synthetic_stream"]

#: Rows of the published definitions.
FULL_LENGTH = 1_000_000
_ABRUPT = 50
_QUARTERS = (0.25, 0.5, 0.75)
_RELEASED_ABRUPT = (0.249975, 0.499975, 0.749975)
_RELEASED_GRADUAL = (0.225, 0.475, 0.725)

_SETTINGS: dict[str, tuple[Callable[[int, int], Concept], tuple[int, ...]]] = {
    "LED": (lambda drift, seed: LED(drift, seed=seed), (1, 3, 5, 7)),
    "SEA": (lambda function, seed: SEA(function, seed=seed), (1, 2, 1, 4)),
    "AGR": (lambda function, seed: Agrawal(function, seed=seed), (1, 2, 1, 4)),
    "SEA_released": (lambda function, seed: SEA(function, seed=seed), (1, 2, 4, 1)),
}
_BAYES = {"LED": LED_BAYES[10], "SEA": 0.9, "HYPER": 0.95}

#: Names of the streams by suite.
SUITES: dict[str, tuple[str, ...]] = {
    "arf": ("LED_a", "LED_g", "SEA_a", "SEA_g", "AGR_a", "AGR_g", "RBF_m", "RBF_f", "HYPER", "RTG"),
    "driftmoe": ("LED_a", "LED_g", "SEA_a", "SEA_g", "RBF_m", "RBF_f"),
}


def synthetic_stream(name: str, n_rows: int = FULL_LENGTH, seed: int = 1, suite: str = "arf") -> DriftStream:
    """Return a named stream.

    Args:
        name: One of the suite's names, such as ``LED_a``.
        n_rows: Length; drifts keep their relative places.
        seed: Seed of the rows, of the model behind RBF and RTG, and of the mixture. With 1 the rows are
            MOA's.
        suite: ``arf`` or ``driftmoe``.

    Raises:
        UserError: If there is no such suite or stream, or if it is too short for its drifts.
    """
    if suite not in SUITES:
        raise UserError(f"there is no suite {suite!r} of drift streams. Suites: {', '.join(SUITES)}.")
    if name not in SUITES[suite]:
        raise UserError(
            f"the suite {suite!r} has no stream {name!r}.{did_you_mean(name, SUITES[suite])} "
            f"Its streams: {', '.join(SUITES[suite])}."
        )
    family, _, kind = name.partition("_")
    drifts: tuple[int, ...] = ()
    if family == "RBF":
        speed = {"m": 1e-4, "f": 1e-3}[kind]
        concept: Concept = RandomRBF(5 if suite == "arf" else 2, speed, model_seed=seed, seed=seed)
    elif family == "HYPER":
        concept = Hyperplane(seed=seed)
    elif family == "RTG":
        concept = RandomTree(tree_seed=seed, seed=seed)
    else:
        concept, drifts = _chained(family, kind, n_rows, seed, suite)
    return DriftStream(
        name,
        concept,
        concept.features,
        concept.nominal,
        n_rows,
        concept.n_classes,
        drifts,
        _BAYES.get(family),
    )


def _chained(family: str, kind: str, n_rows: int, seed: int, suite: str) -> tuple[Concept, tuple[int, ...]]:
    abrupt = kind == "a"
    shares = _QUARTERS
    if suite == "driftmoe":
        shares = _RELEASED_ABRUPT if abrupt else _RELEASED_GRADUAL
    positions = tuple(round(share * n_rows) for share in shares)
    width = _ABRUPT if abrupt else round(n_rows / 20)
    if n_rows < 4 * _ABRUPT or any(after <= before for before, after in pairwise((0, *positions))):
        raise UserError(f"{family}_{kind} has three drifts: {n_rows} rows are too few, ask for 200 or more.")
    build, values = _SETTINGS["SEA_released" if (family, suite) == ("SEA", "driftmoe") else family]
    return chain([build(value, seed) for value in values], positions, width, seed), positions
