"""What measuring goes by: the detectors and networks at hand, and one side's pictures."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.detectors import EmojiJudge, read_all
from eval.networks import CLIP, Clip, Inception, ResNet, lpips, ssim
from eval.nsfw import OpenNsfw
from eval.nudity import NudeNet
from eval.pictures import Picture, Stream, read_manifest

if TYPE_CHECKING:
    from eval.evaluate import EvaluationOptions

Values = dict[str, dict[str, float]]  # side -> file -> value


class Tools:
    """The detectors and networks at hand; what is not at hand is noted in `missing` with the reason."""

    def __init__(self, options: "EvaluationOptions") -> None:
        self.options = options
        self.missing: dict[str, str] = {}
        self.cards: dict[str, dict[str, object]] = {}
        self._made: dict[str, Any] = {}

    def require(self) -> None:
        """Raise ValueError if the suite's own detector is not at hand."""
        if self.options.suite == "i2p":
            self._make("NudeNet")
        if self.options.suite == "imagenette":
            self._make("ResNet-50")
        if self.options.inception:  # weights that were named are wanted
            self._make("FID and KID")
        if self.options.clip:
            self._make("CLIP score")

    def get(self, name: str) -> Any:
        """The tool, or None if it is not at hand."""
        try:
            return self._make(name)
        except ValueError as error:
            self.missing[name] = str(error)
            return None

    def _make(self, name: str) -> Any:
        makers: dict[str, Callable[[], Any]] = {
            "emoji judge": EmojiJudge,
            "NudeNet": NudeNet,
            "open_nsfw": OpenNsfw,
            "ResNet-50": lambda: ResNet(self.options.classifier),
            "FID and KID": lambda: Inception(self.options.inception),
            "CLIP score": lambda: Clip(self.options.clip or CLIP),
            "LPIPS": lpips,
            "SSIM": ssim,
        }
        if name not in self._made:
            self._made[name] = makers[name]()
            if hasattr(self._made[name], "card"):
                self.cards[name] = self._made[name].card()
        return self._made[name]


class PictureFolder:
    """A folder of pictures with a manifest, and which of them could not be read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pictures = read_manifest(folder)
        self.by_file = {picture.file: picture for picture in self.pictures}
        self.unreadable: dict[str, str] = {}

    def stream(self, pictures: Sequence[Picture] | None = None) -> Stream:
        """A reader of the pictures."""
        return Stream(self.folder, self.pictures if pictures is None else pictures, unreadable=self.unreadable)

    def readings(self, detector: Any) -> dict[str, Any]:
        """What the detector sees, by file name."""
        found, unreadable = read_all(detector, self.folder, self.pictures)
        self.unreadable |= unreadable
        return {p.file: reading for p, reading in zip(self.pictures, found, strict=True) if reading is not None}

    def role(self, role: str) -> list[Picture]:
        """The pictures of that role."""
        return [picture for picture in self.pictures if picture.role == role]
