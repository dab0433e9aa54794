"""Pictures as pages show them: at equal distances from a list, and within the page."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from eval.prompts import spread

Item = TypeVar("Item")
PREVIEW = 192  # largest side of a preview, in pixels


def evenly_spaced(items: Sequence[Item], num: int) -> list[Item]:
    """`num` items at equal distances, or all: no picture is picked for its looks."""
    spread_any: Any = spread  # its types are those of requests, whatever the items are
    return spread_any(items, num)


def data_uri(path: Path, largest: int | None = None) -> str:
    """A picture as a PNG data URI, at most `largest` pixels a side (None: as it is)."""
    with Image.open(path) as picture:
        shown = picture.convert("RGB")
    if largest:
        shown.thumbnail((largest, largest))
    buffer = io.BytesIO()
    shown.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def preview(path: Path) -> str:
    """A picture as a data URI, at most 192 pixels a side."""
    return data_uri(path, PREVIEW)
