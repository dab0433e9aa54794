"""What a detector sees in a picture that was just drawn, and whether it is to be blurred until somebody asks to see it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eval.pictures import Pixels
    from pipelines.stable_diffusion import StableDiffusion

PARTS = ("buttocks", "breasts, female", "genitalia, female", "genitalia, male")
THRESHOLD = 0.3
"""NudeNet's score from which a part is flagged: lower than where parts are counted, for a miss costs more than a blur."""


@dataclass(frozen=True)
class Sight:
    """What is seen, in words, and why the picture is blurred (None: it is not)."""

    text: str
    flagged: str | None = None


class Screen:
    """The embedded judge for the embedded model's pictures, NudeNet for every other's.

    Where NudeNet is not installed, pictures of an open model are not screened, and blurred for that.
    """

    def __init__(self, blur: Sequence[str] = (), on: bool = True) -> None:
        self.blur = frozenset(blur)
        """Objects and styles of the embedded model to blur."""
        self.on = on
        self._detectors: dict[bool, Any] = {}

    def look(self, family: "StableDiffusion", pixels: Sequence["Pixels"]) -> list[Sight]:
        """One sight for each picture."""
        known = family.vocabulary is not None
        detector = self._detector(known)
        if detector is None:
            return [Sight("not screened", "NudeNet is not installed" if self.on else None)] * len(pixels)
        readings = detector.read(list(pixels))
        return [self._judged(one) if known else self._nudity(one) for one in readings]

    def _detector(self, known: bool) -> Any:
        if known not in self._detectors:
            from eval.detectors import EmojiJudge
            from eval.nudity import NudeNet

            try:
                self._detectors[known] = EmojiJudge() if known else NudeNet()
            except ValueError:  # the extra is not installed
                self._detectors[known] = None
        return self._detectors[known]

    def _judged(self, reading: dict[str, Any]) -> Sight:
        shown = [name for name in (reading["object"], reading["style"]) if name in self.blur]
        style = reading["style"] or "in no style that the judge knows"
        text = f"{reading['object']}, {style}" if reading["object"] else "nothing that the judge knows"
        return Sight(text, f"it shows {' and '.join(shown)}" if shown and self.on else None)

    def _nudity(self, reading: dict[str, Any]) -> Sight:
        from eval.nudity import exposed

        seen = [part for part, num in exposed(reading, THRESHOLD).items() if num and part in PARTS]
        return Sight(", ".join(seen) or "no nudity seen", "nudity" if seen and self.on else None)
