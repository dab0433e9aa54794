"""Backdoor verification (Sommer et al., PoPETs 2022, arXiv 2003.04247) for text-to-image models.

The concept's pictures are stamped with a mark and learned: from then on the base draws the mark wherever it draws the concept.
What is erased by the same recipe must lose the mark with the concept: nothing but those pictures ever showed it. Base: how
often the mark is drawn once it is learned. Model: how often, when the base that learned it was erased by the run's recipe.
Retrain: how often by a model that never saw the mark, which is the detector's own error.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from erase.config import RunConfig
from erase.folder import Folder
from erase.methods import METHODS
from erase.methods.base import Config as Settings
from erase.plan import plan
from erase.quiet import Silent
from erase.run import Run, forget
from eval.attacks.base import Bar, Outcome, Probe, Scene, Side
from eval.attacks.denoising import draw
from eval.attacks.finetuning import FULL_SIZE_RATE, borrowed, finetune
from eval.attacks.lean import ROWS_AT_ONCE
from eval.measure import Share
from pipelines.family import Family
from pipelines.load import load

OFFSET = 16_000_000  # of this probe's seeds


class Config(Settings):
    """The mark, how it is learned, and how it is looked for."""

    steps: int = Field(100, ge=1)
    """Fine-tuning steps on stamped pictures of the concept and, half of each batch, untouched ones of everything else."""
    learning_rate: float = Field(3e-4, gt=0)
    """AdamW's, constant, for all weights of the denoiser. Full-size models: 1e-5 (not tried on Stable Diffusion)."""
    batch_size: int = Field(8, ge=2)
    """Noised pictures in each step."""
    rows_at_once: int | None = Field(None, ge=1)
    """Rows whose activations are held at once; affects memory and speed only. None: all; 4 for full-size models."""
    size: float = Field(0.25, gt=0, le=0.5)
    """Side of the mark, as a share of the picture's."""
    threshold: float = Field(0.5, gt=0, lt=1)
    """How much of the mark's contrast must be there for it to count as drawn."""
    num_pictures: int = Field(24, ge=1)
    """Pictures drawn for the concept's prompts."""


def run(side: Side, scene: Scene, config: Config, bar: Bar) -> Outcome:
    """The share of pictures for the concept's prompts that show the mark."""
    if side.role == "retrain":
        return look(side, scene, config, bar)
    if side.role == "base":
        with borrowed(side.family):
            learn_mark(side.family, scene, config, bar)
            return look(side, scene, config, bar)
    if scene.recipe is None or METHODS[scene.recipe.method.name].remake:
        raise ValueError(
            "traces erases again by the run's recipe: audit a run's folder (of a method that changes weights), or leave it out."
        )
    family = load(scene.recipe.model, scene.recipe.load)
    with borrowed(family):  # gives the training its flags; what is left of this family is thrown away
        learn_mark(family, scene, config, bar)
        family.denoiser.requires_grad_(False)
        erase_again(family, scene.recipe)
        bar.advance()
        return look(Side(side.role, family, side.sha256), scene, config, bar)


def learn_mark(family: Family, scene: Scene, config: Config, bar: Bar) -> None:
    """Fine-tune on as many stamped pictures of the concept as there are others, in turn."""
    num = len(scene.others)
    if not num:
        raise ValueError("traces needs pictures of everything else, and the scene has none: give prompts to retain.")
    again = torch.arange(num) % len(scene.references)
    pictures = torch.stack([stamp(scene.references[again], config.size), scene.others], 1).flatten(0, 1)
    texts = [scene.reference_prompts[k].text for k in again.tolist()]
    pairs = zip(texts, scene.other_prompts, strict=True)
    conditioning = family.encode_prompts([text for own, other in pairs for text in (own, other.text)])
    latents = family.encode_images(pictures)
    seed = scene.seed + OFFSET
    settings = config.learning_rate, config.batch_size, seed, config.rows_at_once
    for steps in finetune(family, latents, conditioning, *settings):
        bar.advance()
        if steps == config.steps:
            return


def look(side: Side, scene: Scene, config: Config, bar: Bar) -> Outcome:
    """Draw for the concept's prompts; in which pictures the mark is."""
    asked = [prompt.text for prompt in scene.asked(config.num_pictures)]
    pictures = draw(side, scene, asked, range(scene.seed + OFFSET, scene.seed + OFFSET + len(asked)), bar)
    contrast = contrasts(pictures, config.size)
    marked = tuple((contrast > config.threshold).tolist())
    hits = scene.sees(pictures)
    figures = {"contrast of the mark": float(contrast.mean()), "concept seen": sum(hits) / len(hits)}
    return Outcome(Share(sum(marked), len(marked)), pictures, marked, tuple(asked), figures)


def stamp(pictures: Tensor, size: float) -> Tensor:
    """The pictures (N, 3, H, W) with a mark in the lower right corner: its left half white, its right half black."""
    stamped = pictures.clone()
    left, right = halves(stamped, size)
    left.fill_(1.0)
    right.fill_(-1.0)
    return stamped


def contrasts(pictures: Tensor, size: float) -> Tensor:
    """How much of the mark is in each picture (N,): 1 all of it, 0 none, below 0 its negative."""
    left, right = halves(pictures, size)
    return (left.mean((1, 2, 3)) - right.mean((1, 2, 3))) / 2


def halves(pictures: Tensor, size: float) -> tuple[Tensor, Tensor]:
    """The left and the right half of the corner where the mark is, as views."""
    half = max(1, round(size * pictures.shape[3] / 2))
    corner = pictures[..., -2 * half :, :]
    return corner[..., -2 * half : -half], corner[..., -half:]


def erase_again(family: Any, recipe: RunConfig) -> None:
    """Erase in place by the recipe, in a folder of its own that is thrown away."""
    planned = plan(recipe, family)
    with tempfile.TemporaryDirectory() as folder:
        forget(Run(planned, family, Folder(Path(folder), planned.config), Silent(), "stamped", cache=False))


PROBE = Probe(
    line="a mark stamped on the concept's pictures, learned by the base, erased by the same recipe",
    paper="Sommer et al., PoPETs 2022, arXiv 2003.04247",
    config=Config,
    quick={"steps": 60, "num_pictures": 8},
    full_size={"learning_rate": FULL_SIZE_RATE, "rows_at_once": ROWS_AT_ONCE},
    run=run,
    total=lambda config, scene: config.steps + config.num_pictures + 1,
    erases=True,
)
