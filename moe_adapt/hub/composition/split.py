"""Write the experts of a composed adapter as ordinary LoRAs again, for engines that serve LoRAs by name."""

from pathlib import Path

from moe_adapt.errors import UserError
from moe_adapt.hub.card import hub_id
from moe_adapt.hub.composition.edit import composed_loras
from moe_adapt.hub.composition.folder import read_folder
from moe_adapt.hub.export import EXPORT_FILE, ExportReport
from moe_adapt.hub.folder import folder_size, new_folder, write_json
from moe_adapt.hub.load import read_tensors
from moe_adapt.hub.mixture import LowRank
from moe_adapt.hub.stock import served_rank, stock_rank, write_stock_lora

__all__ = ["split"]

_ROOT = "base_model.model."


def split(folder: str | Path, to: str | Path, *, overwrite: bool = False) -> ExportReport:
    """Write every expert of a composed adapter into ``experts/NAME``.

    Args:
        folder: Folder of the composed adapter.
        to: Folder to write.
        overwrite: Replace an earlier export in `to`.

    Raises:
        UserError: If the folder is no composed adapter, a name cannot be a folder's, or `to` is in use.
    """
    config, tensors, _, record = read_folder(Path(folder))
    loras = composed_loras(config, tensors, record)
    odd = next((name for name in loras if Path(name).name != name), None)
    if odd is not None:
        raise UserError(f"the expert {odd!r} cannot be a folder's name: compose it under another one.")
    counts, rank = [], 0
    with new_folder(Path(to), overwrite) as work:
        for name, lora in loras.items():
            own = work / "experts" / name
            own.mkdir(parents=True)
            sites = {site: LowRank(a, b, lora.scales[site]) for site, (a, b) in lora.factors.items()}
            rank = max(rank, stock_rank(sites))
            write_stock_lora(
                own,
                sites,
                {f"{_ROOT}{key}": tensor for key, tensor in lora.head.items()},
                task_type=record.task,
                modules_to_save=lora.head_paths or None,
                base_model_name_or_path=hub_id(record.base_model),
            )
            counts += [tensor.numel() for tensor in read_tensors(own).values()]
        names = [f"experts/{name}" for name in loras]
        described = {
            "form": "experts",
            "word": "lossy",
            "experts": names,
            "rank": rank,
            "max_lora_rank": served_rank(rank),
            "task": record.task,
            "base": hub_id(record.base_model) or hub_id(record.backbone),
        }
        write_json(work / EXPORT_FILE, described)
    return ExportReport(Path(to), len(counts), sum(counts), folder_size(Path(to)), described)
