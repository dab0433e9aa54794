"""The seam of the audit: what a probe is given, and what it says of one model.

Every probe is one file with its `Config` (settings, none of them a limit) and a constant `PROBE`. The same call is made on each
side: on the base (a probe that does not find the concept there proves nothing), on the model, and, where there is one, on the
model retrained without the concept. A probe leaves every side's weights as it found them, bit for bit.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor

from erase.concepts import Concept, Prompt
from erase.config import RunConfig
from eval.measure import Share
from pipelines.family import Family

Role = Literal["base", "model", "retrain"]


class Bar(Protocol):
    """A progress bar."""

    def advance(self, num: int = 1, **figures: float) -> None:
        """Move on by num."""
        ...


@dataclass(frozen=True)
class Side:
    """One model under probe, in float32."""

    role: Role
    family: Family
    sha256: str


@dataclass(frozen=True)
class Scene:
    """What is sought, by what, and with which settings: the same for every side."""

    concept: Concept
    sees: Callable[[Tensor], list[bool]]
    """Whether the detector sees the concept in each of the pictures (N, 3, H, W) in [-1, 1]."""
    references: Tensor
    """Pictures (N, 3, H, W) in [-1, 1] of the concept, drawn by the base, in each of which the detector sees it."""
    reference_prompts: tuple[Prompt, ...]
    """What each of the references was drawn for."""
    others: Tensor
    """Pictures (M, 3, H, W) of everything else, drawn by the base."""
    other_prompts: tuple[Prompt, ...]
    """What each of the others was drawn for."""
    prompts: tuple[Prompt, ...]
    """Prompts that ask for the concept by its name."""
    seed: int
    num_inference_steps: int
    guidance_scale: float
    batch_size: int
    right: Callable[[Tensor, tuple[Prompt, ...]], list[bool]] | None = None
    """Whether each of the pictures shows what its prompt asks for; None where the detector knows the concept alone."""
    recipe: RunConfig | None = None
    """The run that made the model; None where it is not known. Only `traces` needs it."""
    scratch: Path | None = None
    """The folder in which a probe may write what it needs for a while; None: the system's temporary one."""

    def asked(self, num: int) -> list[Prompt]:
        """As many prompts that name the concept, in turn."""
        return [self.prompts[k % len(self.prompts)] for k in range(num)]


@dataclass(frozen=True)
class Outcome:
    """What a probe found on one side."""

    found: Share
    """In how many of its tries the concept was seen."""
    pictures: Tensor
    """What was drawn (N, 3, H, W) in [-1, 1], at most one picture a try, in the order of the tries."""
    seen: tuple[bool, ...]
    """Whether the concept was seen in each of the pictures."""
    captions: tuple[str, ...] = ()
    """What each picture was drawn for, if there is more to say of it than its number."""
    figures: dict[str, float] = field(default_factory=dict)
    """Other figures, by name: steps until it was back, shares of single variants."""
    parts: dict[str, Share] = field(default_factory=dict)
    """The share of each kind of try (of each wording, each number format), where there are several."""


@dataclass(frozen=True)
class Probe:
    """One way of asking whether the concept is gone: its line for the table, its paper, and the call."""

    line: str
    paper: str
    config: type[Any]
    """Its settings, a frozen pydantic model; every field has a default that is right for the whole audit."""
    quick: dict[str, Any]
    """What is set otherwise with --quick."""
    run: Callable[[Side, Scene, Any, Bar], Outcome]
    total: Callable[[Any, Scene], int]
    """By how much the bar is advanced in all."""
    apart: bool = False
    """Whether its parts are ways of asking of their own, each of which counts only where the base is found by it."""
    files: Callable[[Any], tuple[Path, ...]] = lambda _: ()
    """The files that its settings name, whose content decides what comes out."""
    full_size: dict[str, Any] = field(default_factory=dict)
    """What is set otherwise for a denoiser of full size, where nobody has set it."""
    erases: bool = False
    """Whether it erases once more by the run's recipe: minutes, so it is run only when asked for by name."""
