"""A small SVG canvas in two palettes, for a light and for a dark page."""

import html
from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["DARK", "LIGHT", "Canvas", "Palette"]


@dataclass(frozen=True)
class Palette:
    """Colours of a page.

    Attributes:
        name: Ending of the file's name.
        ink: Text and outlines.
        soft: Secondary text and thin lines.
        panel: Filling of boxes.
        accents: Colours by meaning: main (indigo), second (orange), good (green), bad (red).
    """

    name: str
    ink: str
    soft: str
    panel: str
    accents: dict[str, str] = field(default_factory=dict)

    def colour(self, name: str) -> str:
        """Return the colour that a name stands for."""
        return self.accents.get(name) or getattr(self, name)


LIGHT = Palette(
    "light",
    "#1f2430",
    "#6b7280",
    "#eef0f8",
    {"main": "#3f51b5", "second": "#c2570c", "good": "#2e7d32", "bad": "#c62828"},
)
DARK = Palette(
    "dark",
    "#e6e8ef",
    "#9aa3b5",
    "#2b3042",
    {"main": "#9fa8da", "second": "#ffb074", "good": "#81c784", "bad": "#ef9a9a"},
)


class Canvas:
    """A picture under way; coordinates are pixels from the upper left corner.

    Args:
        width: Its width.
        height: Its height.
        palette: Its colours.
        title: What it shows, for those who cannot see it.
    """

    def __init__(self, width: float, height: float, palette: Palette, title: str) -> None:
        self.width, self.height, self.palette, self.title = width, height, palette, title
        self.parts: list[str] = []

    def text(
        self,
        x: float,
        y: float,
        text: str,
        colour: str = "ink",
        size: float = 14,
        anchor: str = "middle",
        bold: bool = False,
    ) -> None:
        """Write a line of text; `y` is its middle."""
        weight = ' font-weight="600"' if bold else ""
        self.parts.append(
            f'<text x="{x:g}" y="{y + 0.35 * size:g}" font-size="{size:g}" text-anchor="{anchor}"{weight} '
            f'fill="{self.palette.colour(colour)}">{html.escape(text)}</text>'
        )

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        lines: Sequence[str] = (),
        colour: str = "soft",
        fill: str = "panel",
        opacity: float = 1,
        dashed: bool = False,
    ) -> None:
        """Draw a rounded box with centred lines, the first of them bold."""
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" '
            f'fill="{self.palette.colour(fill)}" fill-opacity="{opacity:g}" '
            f'stroke="{self.palette.colour(colour)}" stroke-width="1.5"{dash}/>'
        )
        middle = y + height / 2 - 9 * (len(lines) - 1)
        for number, line in enumerate(lines):
            first = number == 0
            self.text(
                x + width / 2,
                middle + 18 * number,
                line,
                "ink" if first else "soft",
                14 if first else 12,
                bold=first,
            )

    def line(
        self,
        points: Sequence[tuple[float, float]],
        colour: str = "soft",
        width: float = 1.5,
        arrow: bool = False,
        dashed: bool = False,
    ) -> None:
        """Draw a line through points, with an arrow head at its end if asked for."""
        path = " ".join(f"{x:.5g},{y:.5g}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        end = f' marker-end="url(#head-{colour})"' if arrow else ""
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke="{self.palette.colour(colour)}" '
            f'stroke-width="{width:g}" stroke-linejoin="round"{dash}{end}/>'
        )

    def arrow(self, *points: tuple[float, float], colour: str = "soft", width: float = 1.5) -> None:
        """Draw an arrow through points."""
        self.line(points, colour, width, arrow=True)

    def shape(self, element: str, colour: str, opacity: float = 1, **attributes: float | str) -> None:
        """Draw a filled SVG element."""
        values = "".join(f' {name}="{value}"' for name, value in attributes.items())
        self.parts.append(
            f'<{element} fill="{self.palette.colour(colour)}" fill-opacity="{opacity:g}"{values}/>'
        )

    def svg(self) -> str:
        """Return the picture."""
        names = ("ink", "soft", *self.palette.accents)
        heads = "".join(
            f'<marker id="head-{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
            f'markerHeight="7" orient="auto"><path d="M0 0L10 5L0 10z" fill="{self.palette.colour(name)}"/>'
            "</marker>"
            for name in names
        )
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width:g} {self.height:g}" '
                f'width="{self.width:g}" height="{self.height:g}" role="img" '
                'font-family="system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif">',
                f"<title>{html.escape(self.title)}</title>",
                f"<defs>{heads}</defs>",
                *self.parts,
                "</svg>\n",
            ]
        )
