"""What the page may ask for: the limits, and one sentence for everything beyond them."""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from erase.reading import plain_text
from erase.terminal import short_of_memory

logger = logging.getLogger(__name__)


class Limits(BaseModel):
    """The most that one request may ask for."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    prompt: int = Field(400, ge=1)
    """Characters of a prompt."""
    steps: int = Field(100, ge=1)
    """Sampler steps of a picture."""
    guidance_scale: float = Field(20.0, ge=1)
    """Classifier-free guidance."""
    seeds: int = Field(9, ge=1)
    """Pictures of a grid of seeds."""
    size: int = Field(1024, ge=64)
    """Pixels of a picture's side."""
    patches: int = Field(4, ge=1)
    """Patches stacked on one model."""
    draws: int = Field(32, ge=1)
    """Requests of the page that wait at a time."""
    runs: int = Field(4, ge=1)
    """Erase runs that wait at a time."""
    train_steps: int = Field(5_000, ge=1)
    """Training steps of an erase run."""
    pictures: int = Field(5_000, ge=1)
    """Pictures in any set of an erase run."""
    processes: int = Field(8, ge=2)
    """Processes of a training from scratch, and CPU threads of each."""
    samples: int = Field(150_000, ge=32)
    """Samples of a training from scratch; the embedded model has seen 144,000."""


@dataclass(frozen=True)
class Ask:
    """One picture for each seed, all for the same prompt."""

    prompt: str
    seeds: tuple[int, ...]
    steps: int
    guidance_scale: float
    size: int | None = None
    """Pixels of a side; None: the model's own."""


@dataclass(frozen=True)
class Scene:
    """A model and the patches on it, each with its strength."""

    model: str
    patches: tuple[tuple[str, float], ...] = ()


def asked(prompt: Any, seed: Any, steps: Any, guidance: Any, size: Any, num: Any, limits: Limits) -> Ask:
    """What is to be drawn; raises ValueError with the limit that was passed."""
    text = " ".join(str(prompt or "").split())
    if not text:
        raise ValueError("The prompt is empty: write what to draw, for example “a dog, neon style”.")
    if len(text) > limits.prompt:
        raise ValueError(f"The prompt has {len(text)} characters; at most {limits.prompt} are allowed.")
    plain_text(text, "The prompt")
    first = whole(seed, "The seed", 0, 2**31 - 1)
    many = whole(num, "The number of seeds", 1, limits.seeds)
    side = whole(size or 0, "The size", 0, limits.size)
    if side and (side < 64 or side % 8):
        raise ValueError(f"The size is {side}; it must be a multiple of 8 from 64 to {limits.size}, or 0 for the model's own.")
    return Ask(
        text,
        tuple((first + k) % 2**31 for k in range(many)),
        whole(steps, "The number of steps", 1, limits.steps),
        number(guidance, "The guidance", 1, limits.guidance_scale),
        side or None,
    )


def stacked(model: str, patches: Any, strengths: Any, limits: Limits) -> Scene:
    """The model with those patches; raises ValueError for too many, for one given twice, and for strengths out of range."""
    names = [str(name) for name in listed(patches)]
    if len(names) > limits.patches:
        raise ValueError(f"{len(names)} erasures are chosen; one model takes at most {limits.patches}.")
    if len(set(names)) != len(names):
        raise ValueError("The same erasure is chosen twice.")
    given = [number(value, "The strength", 0, 1.5) for value, _ in zip(strengths, names, strict=False)]
    if len(given) < len(names):
        raise ValueError(f"{len(names)} erasures are chosen and {len(given)} strengths given: give one for each.")
    return Scene(model, tuple(zip(names, given, strict=True)))


def listed(patches: Any) -> list[Any]:
    """The chosen erasures as a list; raises ValueError for anything else."""
    if not isinstance(patches, list | tuple | None):
        raise ValueError(f"The erasures are {_shown(patches)}; they must be a list of names.")
    return list(patches or ())


def whole(value: Any, what: str, low: int, high: int) -> int:
    """The whole number; raises ValueError with the range."""
    found = number(value, what, low, high)
    if found != int(found):
        raise ValueError(f"{what} is {found:g}; it must be a whole number.")
    return int(found)


def number(value: Any, what: str, low: float, high: float) -> float:
    """The number; raises ValueError with the range."""
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not low <= found <= high:  # also refuses nan
        raise ValueError(f"{what} is {_shown(value)}; it must be a number from {low:g} to {high:g}.")
    return found


def _shown(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, (int, float)) and abs(value) < 1e15 else str(value)
    return text if len(text) <= 40 else text[:40] + "…"


@contextmanager
def sentences(wrong: Callable[[str], Exception]) -> Iterator[None]:
    """Whatever fails in the block becomes `wrong` of one HTML-escaped sentence; what is not the user's mistake is logged."""
    try:
        yield
    except ValueError as error:
        raise wrong(escape(" ".join(str(error).split())[:600])) from None
    except OSError as error:
        logger.exception("a file could not be read or written")
        raise wrong(escape(f"A file could not be read or written: {error.strerror or 'unknown reason'}.")) from None
    except Exception as error:
        logger.exception("the app failed")
        if whose := short_of_memory(error):
            raise wrong(
                f"{whose.capitalize()} does not have enough memory for this: ask for fewer or smaller pictures."
            ) from None
        raise wrong("Something went wrong in the app itself; see the terminal in which it was started.") from None
