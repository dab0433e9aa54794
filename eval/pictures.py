"""Pictures on disk and their manifest: one line each, with everything needed to draw the picture again and to know it."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, ValidationError

from erase.files import atomic, write_text
from erase.images import FORMATS, UNREADABLE, require_size
from erase.methods.base import Config
from erase.reading import MOST_JSON, parse_json, read_text

Pixels = NDArray[np.uint8]  # (H, W, 3)
Item = TypeVar("Item")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
SMALLEST = 8  # a picture with a shorter side shows nothing that a detector could see


class Request(Config):
    """One picture to draw. Width and height of None leave the size to the model."""

    prompt: str
    """The text."""
    seed: int = Field(ge=0, lt=2**63)
    """Seed of the noise the sampler starts from."""
    guidance: float = Field(ge=0)
    """Classifier-free guidance scale; up to 1 turns guidance off."""
    steps: int = Field(ge=1)
    """Sampler steps."""
    width: int | None = Field(None, ge=8)
    """Width in pixels."""
    height: int | None = Field(None, ge=8)
    """Height in pixels."""
    object: str | None = None
    """The object the prompt asks for."""
    style: str | None = None
    """The style the prompt asks for."""
    role: str = "retain"
    """What the picture is for: retain, forget, or the wording it tests."""
    case: str | None = None
    """The row's name in the prompt list, such as I2P's case number."""


class Picture(Request):
    """A drawn picture: the request, the file, the model's hash and the hash of the pixels."""

    file: str = Field(pattern=r"^[^./\\\x00-\x1f][^/\\\x00-\x1f]*$", max_length=255)
    """File name beside the manifest: a plain one, for it may come from a stranger."""
    model: str
    """Hash of the model that drew it."""
    sha256: str
    """Hash of the 8-bit RGB pixels and their shape."""
    batch_size: int = Field(ge=1)
    """Rows per batch when it was drawn."""

    def request(self) -> Request:
        """The request alone."""
        return Request.model_validate({name: getattr(self, name) for name in Request.model_fields})


def hash_pixels(pixels: Pixels) -> str:
    """SHA-256 of the shape and the bytes."""
    digest = hashlib.sha256(str(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).tobytes())
    return digest.hexdigest()


def read_pixels(path: Path) -> Pixels:
    """The picture as 8-bit RGB: grey is repeated, alpha dropped, 16 bits cut to their upper 8.

    Raises ValueError that names the file if it is no picture, is damaged, or is too small to show anything.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            require_size(image)
            image.load()
            if image.mode.startswith("I"):
                wide = np.asarray(image)
                grey = (wide.astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
                pixels = np.repeat(grey[:, :, None], 3, axis=2)
            else:
                pixels = np.asarray(image.convert("RGB"))
    except UNREADABLE as error:
        raise ValueError(f"{path.name} cannot be read as a picture ({' '.join(str(error).split())[:120]})") from error
    if min(pixels.shape[:2]) < SMALLEST:
        size = f"{pixels.shape[1]} x {pixels.shape[0]}"
        raise ValueError(f"{path.name} is {size}: a side below {SMALLEST} pixels shows nothing")
    return pixels


def write_png(pixels: Pixels, path: Path) -> None:
    """Write the picture atomically."""
    with atomic(path) as temporary:
        Image.fromarray(pixels).save(temporary, "PNG")


def write_manifest(pictures: Sequence[Picture], folder: Path, name: str = "manifest.jsonl") -> None:
    """Write one line per picture atomically."""
    write_text("".join(picture.model_dump_json() + "\n" for picture in pictures), folder / name)


def read_manifest(folder: Path, name: str = "manifest.jsonl") -> list[Picture]:
    """The pictures of a manifest; raises ValueError if there is none or a line is not one."""
    path = folder / name
    if not path.is_file():
        raise ValueError(f"{folder} has no {name}: it is not a folder that `erase eval` drew.")
    pictures = []
    for number, line in enumerate(read_text(path, MOST_JSON).split("\n"), 1):  # not splitlines: prompts may hold U+2028
        if not line:
            continue
        try:
            pictures.append(Picture.model_validate_json(line))
        except ValidationError as error:
            raise ValueError(f"{path}, line {number}: {error.errors()[0]['msg']}; draw the pictures again.") from error
    return pictures


@dataclass
class Stream:
    """Pictures read a batch at a time; what could not be read is named in `unreadable` and passed over."""

    folder: Path
    pictures: Sequence[Picture]
    batch_size: int = 64
    unreadable: dict[str, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[tuple[list[Picture], list[Pixels]]]:
        """Batches of pictures of one size, in the manifest's order."""
        rows: list[Picture] = []
        batch: list[Pixels] = []
        for picture in self.pictures:
            pixels = self._read(picture)
            if pixels is None:
                continue
            if batch and (len(batch) == self.batch_size or pixels.shape != batch[0].shape):
                yield rows, batch
                rows, batch = [], []
            rows.append(picture)
            batch.append(pixels)
        if batch:
            yield rows, batch

    def _read(self, picture: Picture) -> Pixels | None:
        try:
            pixels = read_pixels(self.folder / picture.file)
        except ValueError as error:
            self.unreadable[picture.file] = str(error)
            return None
        if picture.sha256 and hash_pixels(pixels) != picture.sha256:
            self.unreadable[picture.file] = f"{picture.file} is not what was drawn (its pixels' hash differs)"
            return None
        return pixels


def parse_lines(path: Path) -> Iterator[dict[str, object]]:
    """The JSON objects of a file that may have been cut off in its last line."""
    if path.is_file():
        for line in path.read_bytes().split(b"\n"):
            try:
                value = parse_json(line)
            except ValueError:
                return
            if isinstance(value, dict):
                yield value


def chunks(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
    """The items, `size` at a time."""
    iterator = iter(items)
    while part := list(islice(iterator, size)):
        yield part
