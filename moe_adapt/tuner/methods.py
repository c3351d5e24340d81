"""Routed methods: what `RoutedLoraConfig(method=...)` fills in where the caller says nothing.

A method is a file, ``routed_lora/NAME.yaml`` among the packaged configurations: ``fit`` takes it as
``--config routed_lora/NAME``, and the values under ``model.init_args.tuner`` are the preset. Target groups
(`"ffn"`, `"attention"`) are resolved against the base model in `moe_adapt.tuner.targets`.

Some layers make sense only under the learner of a stream, which adds their experts task by task. Their file
says so in a comment, ``# only: learner/NAME``, and ``fit`` does not offer them.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

import yaml

__all__ = ["METHODS", "stream_learner"]

_ONLY = re.compile(r"^# only: (\S+)$", re.MULTILINE)


@cache
def _files() -> dict[str, Traversable]:
    folder = files("moe_adapt.configs") / "routed_lora"
    found = sorted((item for item in folder.iterdir() if item.name.endswith(".yaml")), key=lambda f: f.name)
    return {item.name.removesuffix(".yaml"): item for item in found}


@cache
def _preset(name: str) -> dict[str, Any]:
    content = yaml.safe_load(_files()[name].read_text(encoding="utf-8"))
    preset: dict[str, Any] = content["model"]["init_args"]["tuner"]
    return {"shared_a": False, "bank": "lora"} | {
        key: value for key, value in preset.items() if key != "method"
    }


class _Methods(Mapping[str, dict[str, Any]]):
    """Name -> arguments of `RoutedLoraConfig`; a file is read when it is first asked for."""

    def __getitem__(self, name: str) -> dict[str, Any]:
        if name not in _files():
            raise KeyError(name)
        return _preset(name)

    def __iter__(self) -> Iterator[str]:
        return iter(_files())

    def __len__(self) -> int:
        return len(_files())


#: The presets, by the name of the method.
METHODS: Mapping[str, dict[str, Any]] = _Methods()


def stream_learner(text: str) -> str | None:
    r"""Return the configuration of the learner that a method's file is only for; None if ``fit`` can use it.

    Args:
        text: Content of the file.

    >>> stream_learner("# LoRAs that are added up\n# only: learner/olora\nmodel: {}")
    'learner/olora'
    """
    found = _ONLY.search(text)
    return found.group(1) if found else None
