"""How engines that serve LoRAs by name are started with exported experts: vLLM, SGLang, LoRAX.

All read PEFT's folders. A request names the LoRA as its ``model``; LoRAX takes the folder itself as the name.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path

__all__ = ["engine_commands"]


def engine_commands(experts: Mapping[str, Path], base: str, rank: int) -> str:
    """Return the command lines, one engine each.

    Args:
        experts: Folder of each expert by the name that requests give.
        base: The base model.
        rank: The engine's largest rank, as vLLM counts it.

    >>> print(engine_commands({"a": Path("e/a")}, "org/m", 16).splitlines()[0])
    vLLM:   vllm serve org/m --enable-lora --max-loras 1 --max-lora-rank 16 --lora-modules a=e/a
    """
    named = [f"{name}={folder}" for name, folder in experts.items()]
    count, model = str(len(named)), base
    vllm = ["vllm", "serve", model, "--enable-lora", "--max-loras", count]
    vllm += ["--max-lora-rank", str(rank), "--lora-modules", *named]
    sglang = ["python", "-m", "sglang.launch_server", "--model-path", model, "--enable-lora"]
    sglang += ["--max-loras-per-batch", count, "--max-lora-rank", str(rank), "--lora-paths", *named]
    lorax = shlex.join(["lorax-launcher", "--model-id", model, "--adapter-source", "local"])
    example = next(iter(experts.values()))
    return "\n".join(
        [
            f"vLLM:   {shlex.join(vllm)}",
            f"SGLang: {shlex.join(sglang)}",
            f"LoRAX:  {lorax}  (requests name the folder, such as {example})",
        ]
    )
