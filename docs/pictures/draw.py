"""The pictures of the README and of the concept pages: python docs/pictures/draw.py writes them anew."""

from collections.abc import Callable
from pathlib import Path

from bi_level import bi_level
from canvas import DARK, LIGHT, Canvas, Palette
from drift import drift
from overview import overview
from routing import routing
from streams import streams
from updates import updates

__all__ = ["PICTURES", "drawn"]

IMAGES = Path(__file__).resolve().parents[1] / "images"
PICTURES: dict[str, Callable[[Palette], Canvas]] = {
    picture.__name__: picture for picture in (overview, routing, streams, bi_level, updates, drift)
}


def drawn() -> dict[str, str]:
    """Return file name -> SVG, two files per picture."""
    return {
        f"{name}-{palette.name}.svg": picture(palette).svg()
        for name, picture in PICTURES.items()
        for palette in (LIGHT, DARK)
    }


if __name__ == "__main__":
    for name, svg in drawn().items():
        (IMAGES / name).write_text(svg, encoding="utf-8")
