"""Formulas as MathML, which browsers show without a script: the site loads nothing from elsewhere."""

import html
import re

from latex2mathml.converter import convert

__all__ = ["with_mathml"]

_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>', flags=re.DOTALL
)


def with_mathml(page: str) -> str:
    """Return a page's HTML with the formulas that the Markdown extension marked converted."""

    def formula(match: re.Match[str]) -> str:
        display = "block" if match["tag"] == "div" else "inline"
        latex = html.unescape(match["latex"]).strip()
        # The converter knows max and log, but not arg.
        return convert(latex.replace(r"\arg", r"\operatorname{arg}"), display=display)

    return _FORMULA.sub(formula, page)
