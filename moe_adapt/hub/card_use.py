"""The card's section on using an adapter: what it answers, and three lines that end in an answer."""

from collections.abc import Mapping
from typing import Any

__all__ = ["use_section"]

#: The most class names that a card lists.
LISTED = 60


def use_section(answering: Mapping[str, Any], form: str) -> list[str]:
    """Return the section; none for an adapter of which nobody said how rows are put to it.

    Args:
        answering: What ``answering.json`` holds.
        form: Form of the export; only the routed adapter is opened by this package.
    """
    if not answering or form != "adapter":
        return []
    task = answering["task"]
    path = '"PATH_OR_ID_OF_THIS_ADAPTER"'
    lost = str((answering.get("base") or {}).get("backbone", "")).startswith("PATH_OF/")
    base = ', base="FOLDER_OF_THE_BASE_MODEL"' if lost else ""
    lines = ["from moe_adapt import pipeline", ""]
    if task == "text-generation":
        lines += [f"write = pipeline({path}{base})", 'print(write("..."))  # a text']
    else:
        lines += [f"classify = pipeline({path}{base})"]
        example = answering.get("example")
        if example is not None:
            lines += [f"print(classify({example['input']!r}))", f"# {example['answer']!r}"]
        else:
            lines += ['print(classify("a picture.jpg"))' if "image" in task else 'print(classify("a text"))']
            lines += ["# a dict with the class as 'prediction' and its 'probability'"]
    code = "\n".join(lines)
    parts = [f"```python\n{code}\n```"]
    names = answering.get("class_names")
    if names is not None:
        shown = ", ".join(f"`{name}`" for name in names[:LISTED])
        more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
        parts.append(f"{len(names)} classes: {shown}{more}.")
    if answering.get("max_length"):
        words = f"It reads at most {answering['max_length']} tokens"
        parts.append(
            f"{words} of the tokenizer of `{answering.get('tokenizer')}`, whose files are in this folder."
        )
    if answering.get("prompt"):
        parts.append(f"Prompts were put as `{answering['prompt']!r}`.")
    return ["## Use it\n\n" + "\n\n".join(parts)]
