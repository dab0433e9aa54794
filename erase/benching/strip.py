"""What a cell drew, as one small picture: the same prompts and seeds before (above) and after (below)."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from erase.files import atomic
from eval.pictures import Picture, read_manifest, read_pixels
from eval.prompts import spread

NUM = 8  # pictures of the concept's prompts, and as many of the rest


def strip(sides: tuple[Path, Path], path: Path) -> None:
    """Write a WEBP of 2 rows and 16 columns: the concept's prompts, then the rest, each at equal distances from the list.

    `sides`: the folders of the base's and of the erased model's pictures.
    """
    drawn = read_manifest(sides[0])
    chosen = [picture for role in ("forget", "retain") for picture in spread([p for p in drawn if p.role == role], NUM)]
    files = [picture.file for picture in chosen if isinstance(picture, Picture)]
    rows = [np.concatenate([read_pixels(side / file) for file in files], axis=1) for side in sides]
    buffer = BytesIO()
    Image.fromarray(np.concatenate(rows)).save(buffer, "WEBP", quality=75, method=6)
    with atomic(path) as temporary:
        temporary.write_bytes(buffer.getvalue())
