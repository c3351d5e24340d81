"""Public conformance checks: run them on your own components, as our tests do on ours."""

from moe_adapt.checks.instruction_toys import ToyAnswerer, toy_instructions
from moe_adapt.checks.learners import check_batch_invariance, check_learner
from moe_adapt.checks.procedures import CheckedClassifier, check_procedure
from moe_adapt.checks.routing import check_scorer, check_selector
from moe_adapt.checks.streams import check_stream
from moe_adapt.checks.toys import ToyEncoder, gaussian_stream

__all__ = [
    "CheckedClassifier",
    "ToyAnswerer",
    "ToyEncoder",
    "check_batch_invariance",
    "check_learner",
    "check_procedure",
    "check_scorer",
    "check_selector",
    "check_stream",
    "gaussian_stream",
    "toy_instructions",
]
