"""Pictures that the user brings: read from a folder, cut to the model's size."""

import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from erase.files import hash_of, sha256
from erase.reading import plain_text, read_text

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
"""What is opened, whatever a file is called: other readers of the library start programs (EPS) or are hardly tested."""
MOST_PIXELS = 64_000_000
UNREADABLE = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, AttributeError, EOFError, OverflowError, MemoryError),
    *(struct.error, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning),
)
"""What the library raises on damaged files."""
MOST_CAPTION = 1 << 16


def require_size(picture: Image.Image) -> None:
    """Raise ValueError for a picture that says it is larger than any that is wanted; nothing of it is unpacked yet."""
    if picture.width * picture.height > MOST_PIXELS:
        raise ValueError(f"it is {picture.width} x {picture.height}, more than {MOST_PIXELS:,} pixels")


def pictures_in(folder: str, setting: str) -> tuple[Path, ...]:
    """The pictures of a folder by name; raises ValueError if there is no folder, no picture, or one that cannot be read."""
    path = Path(folder)
    if not path.is_dir():
        raise ValueError(f"{setting}: {folder} is {'a file' if path.exists() else 'not there'}; give a folder of pictures.")
    found = tuple(p for p in sorted(path.iterdir()) if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not found:
        raise ValueError(f"{setting}: {folder} holds no picture ({', '.join(SUFFIXES)}).")
    for picture in found:
        read_picture(picture, (8, 8))
    return found


def caption_of(picture: Path) -> str | None:
    """The text beside a picture (cat.txt beside cat.png), or None; raises ValueError if it is no text."""
    path = picture.with_suffix(".txt")
    if not path.is_file():
        return None
    return " ".join(plain_text(read_text(path, MOST_CAPTION), str(path)).split())


def content_hash(pictures: tuple[Path, ...]) -> str:
    """Hash of the pictures' content in order; their captions are prompts and are hashed as such."""
    return hash_of([sha256(path) for path in pictures])


def read_picture(path: Path, size: tuple[int, int]) -> Tensor:
    """The picture (3, height, width) in [-1, 1]: turned upright, on white where transparent, the largest centred part scaled.

    Raises ValueError if it cannot be read.
    """
    height, width = size
    try:
        with Image.open(path, formats=FORMATS) as opened:
            require_size(opened)
            picture = ImageOps.fit(to_rgb(ImageOps.exif_transpose(opened)), (width, height), Image.Resampling.LANCZOS)
    except UNREADABLE as error:
        raise ValueError(f"{path} cannot be read as a picture: {' '.join(str(error).split())}.") from error
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1


def to_rgb(picture: Image.Image) -> Image.Image:
    """8-bit RGB of any mode: 16-bit gray by its upper byte, transparency laid on white; raises ValueError for floats."""
    if picture.mode == "F":
        raise ValueError("its values are floats without a known range")
    if picture.mode.startswith("I"):
        values = np.asarray(picture).astype(np.int64).clip(0, 65535)
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if "A" in picture.getbands() or "transparency" in picture.info:
        own = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", own.size, "white"), own).convert("RGB")
    return picture.convert("RGB")
