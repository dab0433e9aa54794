"""Whether an erased model still makes pictures: noise, grey or one picture for all seeds must not pass for forgetting."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from erase.methods.base import Config
from eval.pictures import Picture, Pixels, Stream
from eval.quality import Features, Moments, frechet, moments

THUMBNAIL = 16
WHOLE = 192  # features of at most so many dimensions (the embedded judge's) are compared in all of them
FEWEST = 64  # pictures a side by which wider ones can be compared
MOST_AT_ONCE = 1 << 22  # distances between thumbnails held in memory, some 110 MB
FEW_PAIRS = 100  # pairs of pictures up to which a check says how few they are
LIMITS = {"anything": 0.8, "anything_forget": 0.5, "diversity": 0.5, "diversity_forget": 0.5, "drift": 0.5}
MEANINGS = {
    "anything": "confidence that retained pictures show something, against the base's",
    "anything_forget": "confidence that pictures for the concept's prompts show something, against the base's",
    "diversity": "difference between pictures of one prompt under different seeds, retained prompts, against the base's",
    "diversity_forget": "difference between pictures of the concept's prompts, against the base's",
    "drift": "Fréchet distance from the base's own retained pictures, in units of their total variance",
}


class Check(Config):
    """One condition: `value` is the erased model's figure, already relative to the base's."""

    name: str
    meaning: str
    value: float | None
    """None where it could not be measured."""
    limit: float
    passed: bool
    pairs: int | None = None
    """Of a diversity: the pairs of pictures that it rests on; None in older files."""


class Gate(Config):
    """Whether the erased model still makes pictures; it has collapsed when any check that could be made fails."""

    passed: bool
    checks: tuple[Check, ...]


def judge_collapse(
    base: "Evidence", erased: "Evidence", base_forget: "Evidence | None" = None, erased_forget: "Evidence | None" = None
) -> Gate:
    """The gate's verdict from what was gathered on retained pictures and, where there are any, on the concept's."""

    def ratio(of_erased: float | None, of_base: float | None) -> float | None:
        return None if of_erased is None or not of_base else of_erased / of_base

    values: dict[str, float | None] = {
        "anything": ratio(erased.anything, base.anything),
        "diversity": ratio(erased.diversity, base.diversity),
        "drift": drift(base, erased),
    }
    if base_forget and erased_forget:
        values["anything_forget"] = ratio(erased_forget.anything, base_forget.anything)
        values["diversity_forget"] = ratio(erased_forget.diversity, base_forget.diversity)
    pairs = {"diversity": min(base.pairs, erased.pairs)}
    if base_forget and erased_forget:
        pairs["diversity_forget"] = min(base_forget.pairs, erased_forget.pairs)
    checks = tuple(_check(name, value, pairs.get(name)) for name, value in values.items())
    return Gate(passed=all(check.passed for check in checks), checks=checks)


def drift(base: "Evidence", erased: "Evidence") -> float | None:
    """Squared Fréchet distance of the two sets of features in units of the base's variance: 0 for the same pictures.

    In many more dimensions than there are pictures, two draws of one distribution lie as far apart as the limit. So features
    wider than `WHOLE` are compared along a few directions in which half of the base's pictures vary most, on the other half,
    and the same with the halves exchanged; None for fewer than `FEWEST` pictures, which cannot tell.
    """
    if base.features.shape[1] <= WHOLE:
        return frechet(erased.moments, base.moments) / float(np.trace(base.moments.covariance))
    num = min(len(base.features), len(erased.features))
    if num < FEWEST:
        return None
    rows = np.random.default_rng(0).permutation(num)
    distance = variance = 0.0
    for known, held in ((rows[::2], rows[1::2]), (rows[1::2], rows[::2])):
        learned = base.features[known].astype(np.float64)
        directions = np.linalg.svd(learned - learned.mean(0), full_matrices=False)[2][: num // 12]
        before, after = (moments([side.features[held] @ directions.T]) for side in (base, erased))
        distance += frechet(after, before)
        variance += float(np.trace(before.covariance))
    return distance / variance


def _check(name: str, value: float | None, pairs: int | None = None) -> Check:
    limit = LIMITS[name]
    passed = value is None or (value <= limit if name == "drift" else value >= limit)
    rounded = None if value is None else round(value, 4)
    few = f"; based on {pairs} pairs of pictures" if pairs is not None and pairs <= FEW_PAIRS else ""
    return Check(name=name, meaning=MEANINGS[name] + few, value=rounded, limit=limit, passed=passed, pairs=pairs)


class Evidence:
    """What the gate needs of one model's pictures; holds features (in float32), never the pictures."""

    def __init__(
        self, pictures: Sequence[Picture], thumbnails: Features, features: Features, anything: Sequence[float] | None
    ) -> None:
        if len(pictures) < 2:
            raise ValueError(
                f"the collapse gate needs at least 2 retained pictures, there are {len(pictures)}: give more prompts."
            )
        self.anything = None if anything is None else float(np.mean(anything))
        prompts = [picture.prompt for picture in pictures]
        self.diversity = diversity(thumbnails, prompts)
        self.pairs = sum(len(rows) * (len(rows) - 1) // 2 for rows in _groups(prompts))
        self.features = features.astype(np.float32)
        self.moments: Moments = moments([features])


def diversity(thumbnails: Features, groups: Sequence[str]) -> float:
    """Root mean square difference (0 to 1) of two pictures of one group, mean over pairs, then over groups.

    Where no group has two pictures, all count as one group.
    """
    return float(np.mean([_mean_distance(thumbnails[rows]) for rows in _groups(groups)]))


def _groups(names: Sequence[str]) -> list[list[int]]:
    """The rows of each group that has two or more; all rows as one group where none has."""
    members: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        members.setdefault(name, []).append(index)
    return [rows for rows in members.values() if len(rows) > 1] or [list(range(len(names)))]


def _mean_distance(rows: Features) -> float:
    """Mean over all pairs, the distances from some rows at a time where all would fill the memory."""
    n, d = rows.shape
    squares, total = (rows * rows).sum(1), 0.0
    at_once = max(1, min(n, MOST_AT_ONCE // n))
    for start in range(0, n, at_once):
        part = slice(start, start + at_once)
        gaps = (squares[part, None] + squares[None] - 2 * rows[part] @ rows.T).clip(0)
        np.fill_diagonal(gaps[:, start:], 0)
        total += float(np.sqrt(gaps / d).sum())
    return total / (n * (n - 1))


def thumbnail(pixels: Pixels) -> Features:
    """The picture's coarse look: 16 x 16 colours in [0, 1], as a vector (768,)."""
    small = Image.fromarray(pixels).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return np.asarray(small, np.float64).ravel() / 255


def gather(
    folder: Path,
    pictures: Sequence[Picture],
    features: Callable[[list[Pixels]], NDArray[np.float64]] | None,
    sure: Mapping[str, float],
    unreadable: dict[str, str],
) -> dict[str, Evidence]:
    """The evidence on the retained pictures and on the concept's, by role; a role of fewer than 2 readable ones has none.

    Thumbnails stand in for features where no network is at hand; `sure` is how sure a classifier is of each file.
    """
    found = {}
    for role in ("retain", "forget"):
        readable: list[Picture] = []
        thumbnails: list[Features] = []
        parts: list[Features] = []
        for rows, batch in Stream(folder, [p for p in pictures if p.role == role], unreadable=unreadable):
            readable += rows
            thumbnails += [thumbnail(pixels) for pixels in batch]
            if features:
                parts.append(features(batch))
        if len(readable) > 1:
            small = np.stack(thumbnails)
            anything = [sure[p.file] for p in readable] if sure else None
            found[role] = Evidence(readable, small, np.concatenate(parts) if parts else small, anything)
    return found
