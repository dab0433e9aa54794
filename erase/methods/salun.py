"""SalUn: random labels or a concept remapped, on the salient weights alone (Fan et al., ICLR 2024, arXiv 2310.12508, eq. 7).

Forget: mean ||eps_u(x_t | c) - eps(x_t | c')||^2 with c' != c; the target carries no gradient. Retain: the denoising loss on
other pictures, as in the paper, or the original model's own predictions there (distillation), times alpha.

Each departure from the paper is a switch with its reason under it; the paper's and the released code's settings are
`--method paper` and `--method reference-code`.
"""

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from erase.methods.base import Config, Dealt, Figures, Gradients, Method, Rows, Step, two_losses
from erase.methods.lookahead import look_ahead
from erase.methods.munba import nash
from erase.precision import exact
from erase.salient import SalientWeights
from pipelines.family import Conditioning

NUM_BINS = 10  # equal slices of the schedule, in which the importance of a timestep is measured


class SalUn(Config):
    """Saliency unlearning (Fan et al., ICLR 2024)."""

    name: Literal["salun"] = "salun"
    """The method's name."""
    relabel: Literal["random_label", "concept_remap"] = "concept_remap"
    """`random_label` draws another concept at every step; `concept_remap` always takes the anchor: one meaning
    keeps an object's pictures liker than a random one does (measured: docs/methods.md)."""
    anchor: str | tuple[str, ...] = "nearest"
    """What the concept is remapped to: a name, `nearest` (its first relative), `next` (the next in the list), or `none` (the
    empty prompt); for several concepts a list, one each in their order. The nearest changes least (measured on line art:
    docs/methods.md)."""
    alpha: float = Field(1.0, ge=0)
    """Weight of the retain loss against the forget loss: a larger one changes kept pictures less, and a word that brings the
    concept back is perhaps learned more easily (measured: docs/methods.md)."""
    retain: Literal["distill", "denoise"] = "distill"
    """`distill`: keep the original's predictions on retain prompts, where nothing should change; `denoise`: the paper's
    denoising loss, which goes on training on the model's own pictures, and changes them (measured: docs/methods.md)."""
    teacher: Literal["frozen", "moving"] = "frozen"
    """`frozen`: targets come from the original weights; `moving`: from the model being trained, as the reference code does:
    then they drift with it, and `retain: distill` would keep nothing, which is refused (measured: docs/methods.md)."""
    anchor_share: float = Field(0.5, ge=0, le=1)
    """Share of the forget batch whose noisy latents come from pictures of c' and not of c: the states that the concept's
    prompt must lead through once it means c' (0 is the paper's loss)."""
    negative_guidance: float = Field(1.0, ge=0)
    """How far the target of the rows that start from the concept's own pictures is led away from the concept: eps(x_t|c') +
    negative_guidance (eps(x_t|c') - eps(x_t|c)), as ESD leads its target away. At little noise a picture shows what it is, and
    c' alone would have it finished as it is: the concept stays drawn, without its name (0 is the paper's target)."""
    empty_prompt_share: float = Field(0.15, ge=0, le=1)
    """Share of the retain batch that is conditioned on the empty prompt, so that guidance keeps its footing."""
    balance: Literal["alpha", "nash"] = "alpha"
    """How forget and retain are weighed: by `alpha`, or by their Nash bargain (MUNBa), which needs no weight and stays fair
    when one gradient is many times the other."""
    timesteps: Literal["uniform", "importance"] = "uniform"
    """`importance` draws a timestep as often as the concept's and the anchor's predictions differ there, and divides each error
    by how much more often that is: the same expected loss, with more of the batch where there is something to forget."""
    unnamed_share: float = Field(0.0, ge=0, le=1)
    """Share of the rows that start from the concept's own pictures whose prompt does not name it: half of them have the empty
    prompt, half one of what is kept. So the pictures themselves become c', whatever words, or words learned, led to them."""
    unnamed_until: float = Field(0.6, gt=0, le=1)
    """How far up the noise schedule those rows go: above, a picture no longer shows what it is, and others would suffer."""
    adversarial_radius: float = Field(0.0, ge=0)
    """The forget rows' prompt embeddings are first moved by up to this share of their length to where the concept is most
    alive (one gradient step), and unlearned there: the neighbourhood of the name goes with the name. 0: off."""
    lookahead_share: float = Field(0.0, ge=0, le=1)
    """Share of the forget loss that is taken where learning the concept again would lead, in place of where the model is, so
    that fine-tuning on the concept's pictures does not bring it back in a few steps (`erase.methods.lookahead`). 0: off."""
    lookahead_learning_rate: float = Field(3e-4, gt=0)
    """Learning rate of the relearner that goes ahead: three times the audit's (tuned on the embedded model; the recipes of
    full-size models have their training's own, 1e-5)."""
    lookahead_steps: int = Field(16, ge=1)
    """Steps that the relearner takes before it begins anew from the model."""

    @model_validator(mode="after")
    def _one_place(self) -> "SalUn":
        if self.lookahead_share and (self.balance == "nash" or self.adversarial_radius):
            other = "balance: nash" if self.balance == "nash" else "adversarial_radius"
            raise ValueError(
                f"lookahead_share takes the forget loss elsewhere, and {other} is of the loss here: give one of them"
            )
        return self


def rows(config: SalUn, step: Step) -> Rows:
    """The pictures of one step: forget pictures, pictures of what the concept becomes, retain pictures."""
    data = step.data
    states_of_other = round(config.anchor_share * step.forget_batch_size) if len(data.dual_index) else 0
    own = step.randint(len(data.forget_latents), step.forget_batch_size - states_of_other)
    other = data.dual_index[step.randint(max(1, len(data.dual_index)), states_of_other)]
    kept = step.randint(len(data.retain_latents), step.retain_batch_size)
    choice = step.randint(data.forget_relabel.shape[1], len(own))
    latents = torch.cat([data.forget_latents[own], data.retain_latents[other], data.retain_latents[kept]])
    noisy_latents, timesteps, noise = step.noisy(latents)
    weight = step.weights(timesteps)
    own_prompt = data.forget_prompt[own]
    if unnamed := round(config.unnamed_share * len(own)):  # the first ones: the pictures were drawn at random
        own_prompt = torch.cat([unnamed_prompts(step, unnamed), own_prompt[unnamed:]])
        timesteps[:unnamed] = (timesteps[:unnamed] * config.unnamed_until).long()
        noisy_latents = step.family.add_noise(latents, noise, timesteps)
    empty = torch.rand(len(kept), generator=step.generator) < config.empty_prompt_share
    kept_prompt = torch.where(empty, data.empty_prompt, data.retain_prompt[kept])
    forget = torch.arange(len(latents)) < len(own) + len(other)
    return Rows(
        noisy_latents=noisy_latents,
        timesteps=timesteps,
        noise=step.family.target(latents, noise, timesteps),
        asked=torch.cat([own_prompt, data.retain_dual[other], kept_prompt]),
        meant=torch.cat([data.forget_relabel[own, choice], data.retain_prompt[other], kept_prompt]),
        distilled=forget | (config.retain == "distill"),
        forget=forget,
        num_forget=len(own) + len(other),
        num_retain=len(kept),
        weight=weight,
        avoided=torch.cat([data.forget_prompt[own], torch.full((len(other) + len(kept),), -1)]),
    )


def targets(config: SalUn, step: Step, part: Rows) -> Tensor:
    """The teacher's prediction for what each row means, led away from the concept where the row starts from its pictures."""
    target = step.targets(part)
    if part.avoided is None or not config.negative_guidance:
        return target
    led = (part.avoided >= 0).nonzero()[:, 0]
    if not len(led):
        return target
    conditioning = step.data.conditioning(part.avoided[led])
    concept = step.teacher(part.noisy_latents[led], part.timesteps[led], conditioning).float().to(target)
    return target.index_copy(0, led.to(target.device), target[led] + config.negative_guidance * (target[led] - concept))


def unnamed_prompts(step: Step, num: int) -> Tensor:
    """Rows of the prompt table (num,) that do not name the concept: empty and kept prompts in turn."""
    kept = step.data.retain_prompt[step.randint(len(step.data.retain_prompt), num)]
    return torch.where(torch.arange(num) % 2 == 0, step.data.empty_prompt, kept)


def loss(config: SalUn, step: Step, part: Rows, target: Tensor) -> tuple[Tensor, Figures]:
    """A part's share of the step's loss, forget and retain in one forward pass, and its two terms for the record."""
    if config.lookahead_share == 1:  # the forget rows count elsewhere alone: here they are looked at
        with torch.no_grad():
            here = two_losses(step, part.chosen(part.forget), target[part.forget])[2]
        kept = two_losses(step, part.chosen(~part.forget), target[~part.forget])
        return config.alpha * kept[1], {"forget_loss": here["forget_loss"], "retain_loss": kept[2]["retain_loss"]}
    conditioning = None
    if config.adversarial_radius and bool(part.forget.any()):
        conditioning = hardest(step, part, target, config.adversarial_radius)
    forget_loss, retain_loss, figures = two_losses(step, part, target, conditioning)
    if config.balance == "nash":
        return torch.stack([forget_loss, retain_loss]), figures
    return (1 - config.lookahead_share) * forget_loss + config.alpha * retain_loss, figures


def combine(config: SalUn, forget: Gradients, retain: Gradients) -> Gradients:
    """The Nash bargain of the two gradients."""
    return nash(forget, retain, xi=1e-8)


def hardest(step: Step, part: Rows, target: Tensor, radius: float) -> Conditioning:
    """The rows' conditioning, the forget rows' prompt embeddings moved by one step of length `radius` up the forget loss."""
    conditioning = step.data.conditioning(part.asked)
    embeds = conditioning["prompt_embeds"].requires_grad_(True)
    (gradient,) = torch.autograd.grad(two_losses(step, part, target, conditioning)[0], embeds)
    embeds = embeds.detach()
    lengths = [values.flatten(1).norm(dim=1)[:, None, None] for values in (embeds, gradient)]
    moved = embeds + radius * lengths[0] * gradient / lengths[1].clamp(min=1e-20)
    return conditioning | {"prompt_embeds": torch.where(part.forget[:, None, None], moved, embeds)}


def extra_gradients(config: SalUn, step: Step, salient: SalientWeights, dealt: Dealt, scale: float, seed: int) -> Figures:
    """Those of the forget loss where learning the concept again leads, where that is asked for."""
    if not config.lookahead_share:
        return {}
    return look_ahead(
        step,
        salient,
        dealt,
        config.lookahead_share,
        learning_rate=config.lookahead_learning_rate,
        horizon=config.lookahead_steps,
        scale=scale,
        seed=seed,
    )


def prepare(config: SalUn, step: Step, salient: SalientWeights) -> Step:
    """The view with its importance distribution, where it is asked for."""
    if config.timesteps == "uniform":
        return step
    with salient.original():
        return replace(step, importance=importance(step))


def importance(step: Step) -> Tensor:
    """Share of the draws in each slice (bins,): half uniform, half as the teacher tells the concept from its anchor there."""
    generator = torch.Generator().manual_seed(17)
    data, gaps = step.data, torch.zeros(NUM_BINS, dtype=torch.float64)
    steps = step.family.num_train_timesteps
    for k in range(NUM_BINS):
        picture = torch.randint(len(data.forget_latents), (step.forget_batch_size,), generator=generator)
        level = (k + torch.rand(len(picture), generator=generator)) / NUM_BINS
        timesteps = (level * steps).long().clamp(max=steps - 1)
        noise = torch.randn(data.forget_latents[picture].shape, generator=generator)
        noisy_latents = step.family.add_noise(data.forget_latents[picture], noise, timesteps)
        one, other = (
            exact(step.teacher(noisy_latents, timesteps, data.conditioning(prompts[picture])))
            for prompts in (data.forget_prompt, data.forget_relabel[:, 0])
        )
        gaps[k] = (one - other).square().mean().sqrt().cpu()
    share = gaps / gaps.sum() if float(gaps.sum()) else torch.full_like(gaps, 1 / NUM_BINS)
    return (0.5 / NUM_BINS + 0.5 * share).float()


METHOD = Method(
    line="random labels or a concept remapped, on the salient weights",
    paper="Fan et al., ICLR 2024, arXiv 2310.12508",
    rows=rows,
    loss=loss,
    targets=targets,
    combine=combine,
    extra_gradients=extra_gradients,
    prepare=prepare,
)
