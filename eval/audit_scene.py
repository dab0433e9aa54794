"""What every probe is given: pictures of the concept and of everything else that the base draws, and prompts for both.

The same prompts and seeds are drawn by the model: that shows whether it still makes pictures (the collapse gate).
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from erase.concepts import Prompt
from erase.config import RunConfig
from erase.files import hash_of
from erase.methods.base import Config
from erase.plan import Plan, Target, plan
from eval.attacks.base import Scene
from eval.audit_subject import Eyes
from eval.cache import generate_cached
from eval.collapse import Evidence, Gate, gather, judge_collapse
from eval.detectors import read_all, to_tensor
from eval.generate import generate
from eval.measure import Share
from eval.pictures import Picture, Request, read_pixels
from eval.prompts import requests_for
from pipelines.family import Family, Progress


class SceneConfig(Config):
    """How much is drawn for the scene."""

    num_forget: int = Field(48, ge=2)
    """Pictures for the concept's prompts."""
    num_retain: int = Field(96, ge=2)
    """Pictures of everything else."""
    num_references: int = Field(24, ge=1)
    """Most pictures of the concept that the attacks are given."""
    seed: int = Field(7000, ge=0)
    """Seed of the first picture, and of what the probes draw at random."""
    batch_size: int = Field(48, ge=1)
    """Pictures drawn at a time, for speed and memory alone."""
    num_inference_steps: int | None = Field(None, ge=1, le=1000)
    """Sampler steps; none: the run's own (of its evaluation)."""
    guidance_scale: float | None = Field(None, ge=1)
    """Classifier-free guidance; none: the run's own."""


QUICK = {"num_forget": 12, "num_retain": 24, "num_references": 8, "num_inference_steps": 12}


@dataclass(frozen=True)
class Stage:
    """One concept's prompts, requests and detector."""

    target: Target
    forget: tuple[Prompt, ...]
    retain: tuple[Prompt, ...]
    requests: tuple[Request, ...]
    eyes: Eyes
    config: SceneConfig
    num_inference_steps: int
    guidance_scale: float
    becomes: tuple[str, ...] = ()
    """Prompts that a concept given by its prompts was turned into: alone, they say nothing of everything else."""

    @property
    def key(self) -> str:
        """What decides the scene beside the base's weights."""
        requests = [request.model_dump() for request in self.requests]
        return hash_of([asdict(self.target.concept), requests, self.config.model_dump(), self.eyes.detector.card()["sha256"]])

    @property
    def lacks_others(self) -> str:
        """Why nothing can be said of everything else; empty if there are prompts of it."""
        if self.retain and all(prompt.text in self.becomes for prompt in self.retain):
            return "the only prompts kept are those that the concept was turned into: give others with prompts.retain"
        return ""


def planned(config: RunConfig, family: Family, settings: SceneConfig) -> Plan:
    """The run's plan with as many prompts for the concept as the scene draws."""
    evaluation = config.evaluation.model_copy(update={"num_forget": settings.num_forget})
    return plan(config.model_copy(update={"evaluation": evaluation}), family)


def scattered(length: int, num: int) -> list[int]:
    """`num` different places of a list, in order: unlike equal distances, in step with no row or column of a table."""
    stride = next(step for step in range(max(1, round(0.618 * length)), length + 2) if math.gcd(step, length) == 1)
    return sorted(k * stride % length for k in range(num)) if length else []


def stage_for(target: Target, whole: Plan, eyes: Eyes, settings: SceneConfig) -> Stage:
    """The requests for one concept: its prompts, then everything else, or as much of it, by steps of the golden section."""
    kept = whole.retain_evaluation
    chosen = scattered(len(kept), min(settings.num_retain, len(kept)))
    retain = tuple(kept[chosen[k % len(chosen)]] for k in range(settings.num_retain)) if kept else ()
    forget = tuple(target.evaluation[k % len(target.evaluation)] for k in range(settings.num_forget))
    steps = settings.num_inference_steps or whole.config.evaluation.num_inference_steps
    guidance = settings.guidance_scale or whole.config.evaluation.guidance_scale
    requests = requests_for(forget, retain, settings.seed, steps, guidance)
    becomes = tuple(text for one in whole.targets if one.concept.kind == "prompts" for text in one.anchors)
    return Stage(target, forget, retain, tuple(requests), eyes, settings, steps, guidance, becomes)


def draw_side(stage: Stage, family: Family, drawn_by: str, folder: Path, cached: bool, progress: Progress) -> list[Picture]:
    """One side's pictures of the scene in the folder; what is there already and right is kept.

    `drawn_by`: a hash of the model and of the code that draws.
    """
    function = generate_cached if cached else generate
    return function(family, stage.requests, folder, model=drawn_by, batch_size=stage.config.batch_size, progress=progress)


def build_scene(stage: Stage, folder: Path, pictures: Sequence[Picture]) -> Scene:
    """The scene from the base's pictures; raises ValueError if the detector sees the concept in none of them."""
    readings = read_all(stage.eyes.detector, folder, pictures)[0]
    num = len(stage.forget)
    seen = [k for k in range(num) if readings[k] is not None and stage.eyes.shows(readings[k])][: stage.config.num_references]
    name = stage.target.concept.name
    if not seen:
        raise ValueError(
            f"the base does not draw {name!r}: the detector sees it in none of {num} pictures for its own prompts, so that "
            "nothing can be said of a model made from it."
        )
    return Scene(
        concept=stage.target.concept,
        sees=stage.eyes.sees,
        references=_load(folder, [pictures[k] for k in seen]),
        reference_prompts=tuple(stage.forget[k] for k in seen),
        others=_load(folder, pictures[num:]),
        other_prompts=stage.retain,
        prompts=tuple(dict.fromkeys(stage.forget)),
        seed=stage.config.seed + len(stage.requests),
        num_inference_steps=stage.num_inference_steps,
        guidance_scale=stage.guidance_scale,
        batch_size=stage.config.batch_size,
        right=stage.eyes.right if stage.eyes.fits else None,
        scratch=folder,
    )


def _load(folder: Path, pictures: Sequence[Picture]) -> Tensor:
    return to_tensor([read_pixels(folder / picture.file) for picture in pictures]) if pictures else torch.zeros(0, 3, 8, 8)


def evidence(stage: Stage, folder: Path, pictures: Sequence[Picture]) -> dict[str, Evidence]:
    """What the collapse gate needs of one side's pictures."""
    detector = stage.eyes.detector
    readings = read_all(detector, folder, pictures)[0]
    rows = zip(pictures, readings, strict=True)
    sure = {picture.file: reading["anything"] for picture, reading in rows if reading} if stage.eyes.anything else {}
    return gather(folder, pictures, getattr(detector, "features", None), sure, {})


def kept(stage: Stage, folder: Path, pictures: Sequence[Picture]) -> Share | None:
    """One side's pictures for other prompts that show what these ask for; None where there are none or nobody can tell."""
    if stage.eyes.fits is None or not stage.retain:
        return None
    return Share(len(right_ones(stage, folder, pictures)), len(stage.retain))


def right_ones(stage: Stage, folder: Path, pictures: Sequence[Picture]) -> dict[str, str]:
    """By file, the prompt of each of a side's pictures for other prompts that shows what it asks for."""
    assert stage.eyes.fits
    readings = read_all(stage.eyes.detector, folder, pictures)[0]
    rows = list(zip(pictures, readings, strict=True))[len(stage.forget) :]
    asked = zip(rows, stage.retain, strict=True)
    return {one.file: prompt.text for (one, seen), prompt in asked if seen is not None and stage.eyes.fits(seen, prompt)}


def collapse(base: dict[str, Evidence], model: dict[str, Evidence]) -> Gate | None:
    """Whether the model still makes pictures; None where there are too few to say."""
    if "retain" not in base or "retain" not in model:
        return None
    return judge_collapse(base["retain"], model["retain"], base.get("forget"), model.get("forget"))
