"""What is in a picture: detectors, each with its name, its file's hash and its measured error."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from erase.files import sha256, write_text
from eval.pictures import Picture, Pixels, Stream, hash_pixels, parse_lines
from pipelines.emoji.judge import NO_STYLE, NONE, Judge
from pipelines.emoji.render import SIZE
from pipelines.emoji.vocabulary import OBJECTS, STYLES
from pipelines.load import EMOJI_WEIGHTS


@dataclass(frozen=True)
class Reading:
    """What a detector sees: an object and a style, None for none that it knows; how sure it is of any object."""

    object: str | None
    style: str | None
    anything: float = 1.0


class Detector(Protocol):
    """Reads pictures; says who it is."""

    name: str

    def read(self, batch: list[Pixels]) -> list[dict[str, Any]]:
        """What it sees in each of the 8-bit pictures (H, W, 3), as JSON."""
        ...

    def card(self) -> dict[str, object]:
        """Name, file hash and measured errors."""
        ...


def to_tensor(batch: list[Pixels], size: int | None = None) -> Tensor:
    """Pictures (N, 3, H, W) in [-1, 1]; resized to size x size where they are of another."""
    pictures = torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2).float() / 127.5 - 1
    if size and pictures.shape[2:] != (size, size):
        pictures = F.interpolate(pictures, (size, size), mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)
    return pictures


def read_all(
    detector: Detector, folder: Path, pictures: Sequence[Picture]
) -> tuple[list[dict[str, Any] | None], dict[str, str]]:
    """(what the detector sees in each picture, None where it cannot be read; why it cannot, by file name).

    Kept in the folder, by detector and pixel hash, and used again.
    """
    path = folder / f"readings.{detector.name.replace(' ', '-')}.{str(detector.card()['sha256'])[:12]}.jsonl"
    known = {str(line["sha256"]): line["reading"] for line in parse_lines(path)}
    stream = Stream(folder, pictures)
    found: dict[str, Any] = {}
    lines = []
    for rows, batch in stream:
        shas = [row.sha256 or hash_pixels(pixels) for row, pixels in zip(rows, batch, strict=True)]
        if not all(sha in known for sha in shas):
            known |= dict(zip(shas, detector.read(batch), strict=True))
        for row, sha in zip(rows, shas, strict=True):
            found[row.file] = known[sha]
            lines.append(json.dumps({"file": row.file, "sha256": sha, "reading": known[sha]}) + "\n")
    write_text("".join(lines), path)
    return [found.get(picture.file) for picture in pictures], stream.unreadable


class EmojiJudge:
    """The embedded judge: 24 objects and 6 styles, each with "none"."""

    name = "emoji judge"

    def __init__(self, folder: Path = EMOJI_WEIGHTS / "judge") -> None:
        self.path = folder / "model.safetensors"
        self.judge = Judge()
        weights = load_file(self.path)
        state = {n: t.float() if t.is_floating_point() else t for n, t in weights.items()}
        self.judge.load_state_dict(state)
        self.judge.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.accuracy = json.loads((folder / "accuracy.json").read_text())

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> list[Reading]:
        """The likeliest object and style (None for "none") of each picture, and 1 - the probability of no object."""
        readings = []
        for part in pictures.contiguous(memory_format=torch.channels_last).split(256):
            objects, styles = self.judge(part)
            anything = 1 - objects.softmax(1)[:, NONE]
            rows = zip(objects.argmax(1).tolist(), styles.argmax(1).tolist(), anything.tolist(), strict=True)
            for concept, style, sure in rows:
                seen = None if concept == NONE else list(OBJECTS)[concept]
                manner = None if style == NO_STYLE else STYLES[style]
                readings.append(Reading(seen, manner, round(sure, 4)))
        return readings

    @torch.no_grad()
    def features(self, batch: list[Pixels]) -> NDArray[np.float64]:
        """The judge's pooled features (N, 192), for FD-emoji."""
        pictures = to_tensor(batch, SIZE).contiguous(memory_format=torch.channels_last)
        return self.judge.features(pictures).double().numpy()

    def read(self, batch: list[Pixels]) -> list[dict[str, Any]]:
        """The readings of 8-bit pictures, as JSON."""
        return [asdict(reading) for reading in self(to_tensor(batch, SIZE))]

    def card(self) -> dict[str, object]:
        """Name, hash, and its accuracy on held-out augmentations."""
        return {"name": self.name, "sha256": sha256(self.path), "held_out_accuracy": self.accuracy}
