"""What `erase eval` writes to results.json: a versioned schema, every figure with its n and its 95 % interval."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, ValidationError

from erase.methods.base import Config
from eval.collapse import Gate
from eval.measure import Share


class Figure(Config):
    """One figure, how many pictures it rests on, and its 95 % interval where there is one."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int
    interval: Literal["wilson", "bootstrap", "jackknife", "none"] = "none"


class Row(Config):
    """One line of the table: the same measure of the base and of the erased model."""

    key: str
    label: str
    unit: Literal["share", "count", "distance", "score"]
    better: Literal["higher", "lower", "neither"]
    base: Figure | None = None
    model: Figure | None = None
    change: Figure | None = None
    """Model minus base over the same prompts and seeds, where single pictures can be paired."""


class Retention(Config):
    """What was kept of one name: an object, a style, a class."""

    name: str
    base: Figure | None
    model: Figure
    similarity: float | None = None
    """Cosine of its text embedding with the nearest erased concept's."""


class Source(Config):
    """A model or a folder of pictures."""

    name: str
    sha256: str
    kind: Literal["model", "pictures"] = "model"


class Nudity(Config):
    """What NudeNet saw in one side's pictures, at every threshold of the sweep."""

    thresholds: tuple[float, ...]
    parts: dict[str, tuple[int, ...]]
    """Detections of each exposed part, one count per threshold."""
    any_exposed: tuple[int, ...]
    """Pictures with at least one exposed part, one count per threshold."""
    n: int


class Plan(Config):
    """What was asked for: all that the figures need beside the manifests."""

    suite: str
    concepts: tuple[str, ...] = ()
    model: Source
    baseline: Source | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    similarities: dict[str, float] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)
    """Loss curves and mask density of the run that made the model, where there is one."""
    seconds: dict[str, float] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)


class Results(Config):
    """Everything that was measured; a pure function of the plan, the manifests and the pictures they name."""

    schema_version: Literal[1] = 1
    plan: Plan
    prompts_sha256: str
    """Hash of the prompts with their seeds."""
    sampling_sha256: str = ""
    """Hash of each picture's steps, guidance and size; empty in older files."""
    pictures: dict[str, int]
    unreadable: dict[str, dict[str, str]] = Field(default_factory=dict)
    detectors: tuple[dict[str, Any], ...] = ()
    rows: tuple[Row, ...]
    gate: Gate | None = None
    retention: tuple[Retention, ...] = ()
    """Every retained name, the largest loss first."""
    wordings: tuple[Row, ...] = ()
    nudity: dict[str, Nudity] = Field(default_factory=dict)
    not_measured: dict[str, str] = Field(default_factory=dict)
    """What could not be measured, and why."""


def share_figure(share: Share) -> Figure:
    """A share with its Wilson interval."""
    low, high = share.interval()
    return Figure(value=share.value, low=low, high=high, n=share.n, interval="wilson")


def bootstrap(values: Sequence[float], num: int = 2000, seed: int = 0) -> Figure:
    """The mean with its percentile bootstrap interval over pictures."""
    array = np.asarray(values, np.float64)
    if not array.size:
        raise ValueError("no picture could be measured.")
    if not array.any():  # resampling nothing but zeros would claim to be certain
        return Figure(value=0.0, n=len(array))
    rng = np.random.default_rng(seed)
    means = [float(array[rng.integers(0, len(array), len(array))].mean()) for _ in range(num)]
    low, high = np.quantile(means, [0.025, 0.975])
    return Figure(value=float(array.mean()), low=float(low), high=float(high), n=len(array), interval="bootstrap")


def mean_row(
    key: str,
    label: str,
    unit: Literal["share", "count", "distance", "score"],
    better: Literal["higher", "lower", "neither"],
    base: dict[str, float] | None,
    model: dict[str, float],
) -> Row:
    """A row of per-picture values by file name; shares get Wilson's interval, means the bootstrap's, changes are paired."""

    def figure(values: dict[str, float]) -> Figure | None:
        if not values:
            return None
        if unit == "share":
            return share_figure(Share(int(sum(values.values())), len(values)))
        return bootstrap(list(values.values()))

    change = None
    if base and (both := [name for name in model if name in base]):
        change = bootstrap([model[name] - base[name] for name in both])
    return Row(key=key, label=label, unit=unit, better=better, base=figure(base or {}), model=figure(model), change=change)


def read_results(path: Path) -> Results:
    """The results in a file; raises ValueError if they are of another version or damaged."""
    if not path.is_file():
        raise ValueError(f"there are no results at {path}; run `erase eval` first.")
    try:
        return Results.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise ValueError(f"{path} is not a results file of this version ({where}: {error.errors()[0]['msg']}).") from error
