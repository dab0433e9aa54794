"""Unlearning accuracy and what was kept, as UnlearnCanvas defines them (Zhang et al. 2024), with 95 % intervals."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from erase.concepts import Concept, Prompt
from eval.detectors import Reading


@dataclass(frozen=True)
class Share:
    """A share of n trials."""

    count: int
    n: int

    @property
    def value(self) -> float:
        """The share; nan when there was no trial."""
        return self.count / self.n if self.n else math.nan

    def interval(self, z: float = 1.959964) -> tuple[float, float]:
        """The Wilson score interval (95 % by default)."""
        if not self.n:
            return 0.0, 1.0
        centre = self.value + z * z / (2 * self.n)
        spread = z * math.sqrt(self.value * (1 - self.value) / self.n + z * z / (4 * self.n * self.n))
        scale = 1 + z * z / self.n
        return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)

    def __add__(self, other: "Share") -> "Share":
        return Share(self.count + other.count, self.n + other.n)

    def record(self) -> dict[str, Any]:
        """{value, low, high, n} for results.json."""
        low, high = self.interval()
        return {"value": self.value, "low": low, "high": high, "n": self.n}


@dataclass(frozen=True)
class Measures:
    """One model's measures on one concept's evaluation prompts.

    `forget`: the concept's prompts whose picture still shows it (UA = 1 - forget). `ira`: retained pictures right in the
    concept's own domain (objects for an object), `cra`: right in the other domain (styles). For a pair both are over
    pictures of other pairs. `none_*`: pictures in which the detector sees no object or no style it knows. `by_name`: the
    retained share right of each object and each style.
    """

    forget: Share
    ira: Share
    cra: Share
    none_retained: Share
    none_forget: Share
    by_name: dict[str, Share]

    def record(self) -> dict[str, Any]:
        """For results.json; the three headline shares as plain numbers, everything with its interval beside them."""
        return {
            "forget_accuracy": self.forget.value,
            "ira": self.ira.value,
            "cra": self.cra.value,
            "n": self.forget.n + self.ira.n,
            "none_retained": self.none_retained.value,
            "none_forget": self.none_forget.value,
            "intervals": {k: getattr(self, k).record() for k in ("forget", "ira", "cra", "none_retained", "none_forget")},
            "by_name": {name: asdict(share) for name, share in self.by_name.items()},
        }


def measure(
    concept: Concept,
    forget: list[tuple[Prompt, Reading]],
    retain: list[tuple[Prompt, Reading]],
) -> Measures:
    """The measures of readings of pictures for the concept's prompts and for everything else."""

    def share(hits: list[bool]) -> Share:
        return Share(sum(hits), len(hits))

    shown = [
        (concept.object is None or reading.object == concept.object)
        and (concept.style is None or reading.style == concept.style)
        for _, reading in forget
    ]
    objects = [reading.object == prompt.object for prompt, reading in retain]
    styles = [reading.style == prompt.style for prompt, reading in retain if prompt.style]
    own, cross = (styles, objects) if concept.kind == "style" else (objects, styles)
    by_name: dict[str, Share] = {}
    for prompt, reading in retain:
        for asked, seen in ((prompt.object, reading.object), (prompt.style, reading.style)):
            if asked:
                by_name[asked] = by_name.get(asked, Share(0, 0)) + Share(int(seen == asked), 1)
    return Measures(
        forget=share(shown),
        ira=share(own),
        cra=share(cross),
        none_retained=share([None in (reading.object, reading.style) for _, reading in retain]),
        none_forget=share([None in (reading.object, reading.style) for _, reading in forget]),
        by_name=by_name,
    )
