"""What is in a picture: detectors, each with its name, its file's hash and its measured error."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load_file
from torch import Tensor

from erase.files import sha256
from pipelines.emoji.judge import NONE, Judge
from pipelines.emoji.vocabulary import OBJECTS, STYLES
from pipelines.load import EMOJI_WEIGHTS


@dataclass(frozen=True)
class Reading:
    """What a detector sees: an object, or None when it sees none that it knows; and a style."""

    object: str | None
    style: str


class Detector(Protocol):
    """Reads pictures; says who it is."""

    def __call__(self, pictures: Tensor) -> list[Reading]:
        """Readings of pictures (N, 3, H, W) in [-1, 1]."""
        ...

    def card(self) -> dict[str, object]:
        """Name, file hash and measured errors."""
        ...


class EmojiJudge:
    """The embedded judge: 24 objects and "none", 6 styles."""

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
        """The likeliest object (or None for "none") and style of each picture."""
        readings = []
        for part in pictures.contiguous(memory_format=torch.channels_last).split(256):
            objects, styles = self.judge(part)
            for concept, style in zip(objects.argmax(1).tolist(), styles.argmax(1).tolist(), strict=True):
                readings.append(Reading(None if concept == NONE else list(OBJECTS)[concept], STYLES[style]))
        return readings

    def card(self) -> dict[str, object]:
        """Name, hash, and its accuracy on held-out augmentations."""
        return {"name": "emoji judge", "sha256": sha256(self.path), "held_out_accuracy": self.accuracy}
