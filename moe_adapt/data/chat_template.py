"""A chat format for models whose tokenizer has none: by name, or a Jinja file of one's own.

``plain`` writes ``User:`` and ``Assistant:`` before the turns and needs no special tokens, so that a base
model knows every word of it. ``chatml`` writes the marks of many instruct models as text. In both an answer
ends with the tokenizer's end of text.
"""

from pathlib import Path
from typing import Any

from moe_adapt.errors import UserError, did_you_mean

__all__ = ["CHAT_TEMPLATES", "chat_template"]

CHAT_TEMPLATES = {
    "plain": (
        "{% for m in messages %}{{ m['role'] | capitalize }}: {{ m['content'] }}"
        "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}\n"
        "{% endfor %}{% if add_generation_prompt %}Assistant: {% endif %}"
    ),
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>"
        "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
}


def chat_template(tokenizer: Any, given: str | None) -> str | None:
    """Give a tokenizer a chat format, and return its text; None leaves the tokenizer's own.

    Args:
        tokenizer: The tokenizer; changed in place.
        given: A name, a file, or the text of a template.

    Raises:
        UserError: If it is none of these.
    """
    if given is None:
        return None
    text = CHAT_TEMPLATES.get(given, given)
    if text is given and "{" not in given:
        if not Path(given).is_file():
            raise UserError(
                f"there is no chat template {given!r}.{did_you_mean(given, CHAT_TEMPLATES)} "
                f"Give {', '.join(CHAT_TEMPLATES)}, or a Jinja file."
            )
        text = Path(given).read_text(encoding="utf-8")
    tokenizer.chat_template = text
    return text
