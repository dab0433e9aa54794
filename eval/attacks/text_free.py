"""Text-free inversion (after TINA, arXiv 2603.17828): whether the denoiser still holds the concept when no text asks for it.

A picture of the concept is followed back to the noise it comes from, by DDIM inversion under the empty prompt; each inverse
step is solved again until the step forward ends where it began, so that errors do not add up. From that noise the model draws,
with no text and no guidance. An exact inversion gives every picture back in any denoiser, also in one that never knew the
concept: that share alone says nothing. So it is drawn from near that noise, too, mixed with fresh noise, where the model itself
must know what to make of it: these parts tell, beside Retrain's. And the noise's own size tells how likely the model finds the
picture (Rusanovsky et al., CVPR 2025, arXiv 2412.00782): 1 is noise like any other.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from erase.methods.base import Config as Settings
from eval.attacks.base import Bar, Outcome, Probe, Scene, Side
from eval.measure import Share
from pipelines.family import Family

OFFSET = 15_000_000  # of this probe's seeds


class Config(Settings):
    """The inversion and what is drawn from it."""

    num_tries: int = Field(16, ge=1)
    """Reference pictures inverted, one try each."""
    steps: int = Field(20, ge=1)
    """DDIM steps from picture to noise, and back."""
    corrections: int = Field(4, ge=0)
    """Times each inverse step is solved again with the noise predicted where it ended; 0 is plain DDIM inversion."""
    fresh: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (0.3, 0.5)
    """Shares (of the variance) of fresh noise with which the inverted noise is mixed for the further drawings."""


def run(side: Side, scene: Scene, config: Config, bar: Bar) -> Outcome:
    """The share of reference pictures that come back from their noise with the concept seen; parts: that, and with fresh noise.

    The first comes to all in any model (see above); what the model holds shows in the others.
    """
    family = side.family
    latents = family.encode_images(scene.references[: config.num_tries])
    generator = torch.Generator().manual_seed(scene.seed + OFFSET)
    fresh = torch.randn(latents.shape, generator=generator)
    times = schedule(family, config.steps)
    empty = family.encode_prompts([""])
    noise, back = [], []
    nearby: dict[float, list[Tensor]] = {share: [] for share in config.fresh}
    for rows in torch.arange(len(latents)).split(scene.batch_size):
        noise.append(invert(family, latents[rows], times, empty, config.corrections))
        back.append(denoise(family, noise[-1], times, empty))
        for share, drawn in nearby.items():
            mixed = (1 - share) ** 0.5 * noise[-1] + share**0.5 * fresh[rows]
            drawn.append(denoise(family, mixed, times, empty))
        bar.advance(len(rows))
    returned = torch.cat(back)
    pictures = family.decode_latents(returned)
    seen = tuple(scene.sees(pictures))
    parts = {"exact noise": Share(sum(seen), len(seen))}
    for share, drawn in nearby.items():
        hits = scene.sees(family.decode_latents(torch.cat(drawn)))
        parts[f"{share:.0%} fresh noise"] = Share(sum(hits), len(hits))
    error = float((returned - latents).square().mean().sqrt() / latents.square().mean().sqrt())
    figures = {"error of the way back": error, "size of the noise": float(torch.cat(noise).square().mean().sqrt())}
    return Outcome(parts["exact noise"], pictures, seen, figures=figures, parts=parts)


def schedule(family: Family, steps: int) -> list[int]:
    """Timesteps from the least to the most noisy, in equal strides; the last is the schedule's own last."""
    return [(k + 1) * family.num_train_timesteps // steps - 1 for k in range(steps)]


@torch.no_grad()
def invert(family: Family, latents: Tensor, times: list[int], empty: dict[str, Tensor], corrections: int) -> Tensor:
    """The noise (N, C, h, w) from which `denoise` comes to these latents, by a fixed-point iteration at each step."""
    here = latents
    for before, timestep in zip([-1, *times], times, strict=False):
        there = here
        for _ in range(1 + corrections):
            there = lead_back(family, here, before, timestep, *predicted(family, there, timestep, empty))
        here = there
    return here


@torch.no_grad()
def denoise(family: Family, latents: Tensor, times: list[int], empty: dict[str, Tensor]) -> Tensor:
    """Clean latents (N, C, h, w) by deterministic DDIM steps with no text (Song et al., ICLR 2021, eq. 12, sigma 0)."""
    for timestep, after in zip(times[::-1], [*times[-2::-1], -1], strict=True):
        latents = mix(family, *predicted(family, latents, timestep, empty), after)
    return latents


def lead_back(family: Family, latents: Tensor, start: int, end: int, clean: Tensor, noise: Tensor) -> Tensor:
    """Where latents at one timestep come from at a noisier one, if they were led there by this noise.

    Where nothing of the picture is left (zero terminal SNR, Lin et al., WACV 2024) any latents are their own noise: there the
    predicted picture says which.
    """
    signal, size = rates(family, start)
    if rates(family, end)[0]:
        clean = (latents - size * noise) / signal
    elif size:
        noise = (latents - signal * clean) / size
    return mix(family, clean, noise, end)


def mix(family: Family, clean: Tensor, noise: Tensor, timestep: int) -> Tensor:
    """The latents at a timestep (-1: the clean ones) that are made of these."""
    signal, size = rates(family, timestep)
    return signal * clean + size * noise


def rates(family: Family, timestep: int) -> tuple[float, float]:
    """How much of the clean latents and of the noise is in the latents at a timestep; (1, 0) at -1."""
    if timestep < 0:
        return 1.0, 0.0
    one, zero = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    when = torch.tensor([timestep])
    return float(family.add_noise(one, zero, when)), float(family.add_noise(zero, one, when))


def predicted(family: Family, latents: Tensor, timestep: int, empty: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(clean latents, noise), each (N, C, h, w), that the model sees in the latents, whatever mixture of them it predicts."""
    when = torch.full((len(latents),), timestep)
    asked = {key: values.expand(len(latents), *values.shape[1:]) for key, values in empty.items()}
    model_pred = family.predict(latents, when, asked).float().cpu()
    signal, size = rates(family, timestep)
    one, zero = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    of_noise, of_clean = (float(family.target(a, b, when[:1])) for a, b in ((zero, one), (one, zero)))
    clean, noise = of_noise * latents - size * model_pred, signal * model_pred - of_clean * latents
    scale = signal * of_noise - size * of_clean
    return clean / scale, noise / scale


PROBE = Probe(
    line="pictures of the concept inverted to noise and drawn again with no text, also from noise that is partly fresh",
    paper="TINA, arXiv 2603.17828",
    config=Config,
    quick={"num_tries": 6, "steps": 10, "corrections": 2, "fresh": (0.5,)},
    run=run,
    total=lambda config, scene: min(config.num_tries, len(scene.references)),
)
