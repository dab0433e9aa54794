"""What cells drew, as small pictures: the same prompts and seeds before and after, of one cell and of all of a concept."""

import math
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from erase.files import atomic
from eval.pictures import read_manifest, read_pixels
from eval.previews import evenly_spaced

NUM = 8  # pictures of the concept's prompts, and as many of the rest


def strip(sides: tuple[Path, Path], path: Path) -> None:
    """Write a WEBP of 2 rows and 16 columns: the concept's prompts, then the rest, each at equal distances from the list.

    `sides`: the folders of the base's and of the erased model's pictures.
    """
    drawn = read_manifest(sides[0])
    files = [
        picture.file
        for role in ("forget", "retain")
        for picture in evenly_spaced([one for one in drawn if one.role == role], NUM)
    ]
    rows = [np.concatenate([read_pixels(side / file) for file in files], axis=1) for side in sides]
    _write(Image.fromarray(np.concatenate(rows)), path)


def sheet(strips: dict[str, Path], path: Path) -> None:
    """Write a WEBP of the base's row and, below it, what each strip has after erasing, under its label (the keys)."""
    rows: list[tuple[str, Image.Image]] = []
    for label, file in strips.items():
        with Image.open(file) as picture:
            width, height = picture.width, picture.height // 2
            if not rows:
                rows.append(("base", picture.crop((0, 0, width, height))))
            rows.append((label, picture.crop((0, height, width, 2 * height))))
    font = ImageFont.load_default(14)
    margin = 12 + math.ceil(max(font.getlength(label) for label, _ in rows))
    whole = Image.new("RGB", (margin + rows[0][1].width, sum(row.height for _, row in rows)), "white")
    pen, top = ImageDraw.Draw(whole), 0
    for label, row in rows:
        pen.text((6, top + row.height // 2), label, fill="black", font=font, anchor="lm")
        whole.paste(row, (margin, top))
        top += row.height
    _write(whole, path)


def _write(picture: Image.Image, path: Path) -> None:
    buffer = BytesIO()
    picture.save(buffer, "WEBP", quality=75, method=6)
    with atomic(path) as temporary:
        temporary.write_bytes(buffer.getvalue())
