"""What every method shares: its configuration's rules, the rows it is trained on, and the view of the run it is given."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from erase.data import TrainingData
from erase.precision import exact
from erase.salient import SalientWeights
from pipelines.family import Conditioning, Family

# (noisy latents, timesteps, conditioning) -> prediction without gradient
Teacher = Callable[[Tensor, Tensor, Conditioning], Tensor]
Gradients = dict[str, Tensor]  # of the salient weights, one 1-D tensor (K,) each
Figures = dict[str, float]
Dealt = list[tuple["Rows", Tensor]]  # parts of a step's rows, each with its targets
Retain = Literal["distill", "denoise"]


class Config(BaseModel):
    """Frozen, no unknown keys, and the sentence under each field is its description."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Remapping(Config):
    relabel: Literal["random_label", "concept_remap"] = "concept_remap"
    """`random_label` draws another concept at every step; `concept_remap` always takes the anchor."""
    anchor: str | tuple[str, ...] = "nearest"
    """What the concept is remapped to: a name, `nearest` (its first relative), `next` (the next in the list), or `none` (the
    empty prompt); for several concepts a list, one each in their order."""


@dataclass(frozen=True)
class Rows:
    """One step's pictures, one per row. The losses of the parts of any split add up to the loss of the whole.

    So a batch can be accumulated in parts, and dealt out over processes, without changing what is learned.
    """

    noisy_latents: Tensor  # (N, C, h, w)
    timesteps: Tensor  # (N,)
    noise: Tensor  # (N, C, h, w) what the denoising loss wants: noise, or velocity
    asked: Tensor  # (N,) the prompt that the model is asked with, as a row of the prompt table
    meant: Tensor  # (N,) the prompt that the teacher is asked with
    distilled: Tensor  # (N,) bool: the target is the teacher's prediction, not the noise
    forget: Tensor  # (N,) bool: a row of the forget loss, not of the retain loss
    num_forget: int  # in the whole batch
    num_retain: int
    weight: Tensor | None = None  # (N,) of each row's error; None: all weigh the same
    avoided: Tensor | None = None  # (N,) the prompt that a row's target is led away from; -1: none

    def __len__(self) -> int:
        return len(self.timesteps)

    def split(self, num: int) -> list["Rows"]:
        """`num` parts in order, as equal as can be; empty where there are more parts than rows."""
        names = [field.name for field in fields(self) if isinstance(getattr(self, field.name), Tensor)]
        parts = zip(*(getattr(self, name).tensor_split(num) for name in names), strict=True)
        return [replace(self, **dict(zip(names, part, strict=True))) for part in parts]

    def chosen(self, which: Tensor) -> "Rows":
        """The rows for which `which` (N,) is True."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        own: dict[str, Any] = {name: value[which] for name, value in found.items() if isinstance(value, Tensor)}
        return replace(self, **own)


@dataclass(frozen=True)
class Step:
    """What a method gets at each step; everything random is drawn from `generator`, in `rows` or `extra_gradients`.

    (Targets are computed for several steps ahead, so that the teacher's weights need not be swapped in for each.)
    """

    family: Family
    teacher: Teacher
    data: TrainingData
    forget_batch_size: int
    retain_batch_size: int
    generator: torch.Generator
    importance: Tensor | None = None  # (bins,) share of the draws in each equal slice of the schedule; None: uniform
    memory: dict[str, Tensor] = field(default_factory=dict)  # what a method keeps from step to step; saved with the state

    def randint(self, high: int, num: int) -> Tensor:
        """`num` integers in [0, high)."""
        return torch.randint(high, (num,), generator=self.generator)

    def noisy(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(noisy latents, timesteps, noise): stratified draws from the uniform or the importance distribution."""
        num = len(latents)
        strata = torch.randperm(num, generator=self.generator) + torch.rand(num, generator=self.generator)
        steps, level = self.family.num_train_timesteps, strata / num
        if self.importance is not None:
            level = inverse_of_shares(self.importance, level)
        timesteps = (level * steps).long().clamp(max=steps - 1)  # a sum can round up to the next whole number
        noise = torch.randn(latents.shape, generator=self.generator)
        return self.family.add_noise(latents, noise, timesteps), timesteps, noise

    def weights(self, timesteps: Tensor) -> Tensor | None:
        """What makes the mean over importance draws the mean over uniform ones: the ratio of the two densities (N,)."""
        if self.importance is None:
            return None
        bins = timesteps * len(self.importance) // self.family.num_train_timesteps
        return 1 / (len(self.importance) * self.importance[bins])

    def targets(self, rows: Rows) -> Tensor:
        """What the model should predict (N, C, h, w): the teacher's predictions, or the noise."""
        if bool(rows.distilled.all()):
            return self.ask(rows, rows.meant)
        chosen = rows.distilled.nonzero()[:, 0]
        target = rows.noise.clone()
        if len(chosen):
            conditioning = self.data.conditioning(rows.meant[chosen])
            target[chosen] = self.teacher(rows.noisy_latents[chosen], rows.timesteps[chosen], conditioning).float().cpu()
        return target

    def ask(self, rows: Rows, prompts: Tensor) -> Tensor:
        """The teacher's predictions (N, C, h, w) for the rows under these prompts (N,) of the table."""
        return self.teacher(rows.noisy_latents, rows.timesteps, self.data.conditioning(prompts)).float()


def inverse_of_shares(shares: Tensor, level: Tensor) -> Tensor:
    """Where the piecewise uniform distribution with these shares of equal slices of [0, 1) reaches each level."""
    ends = shares.cumsum(0)
    bins = torch.searchsorted(ends, level, right=True).clamp(max=len(shares) - 1)
    within = (level - (ends - shares)[bins]) / shares[bins]
    return (bins + within.clamp(0, 1)) / len(shares)


def picture_rows(step: Step, *, relabelled: bool, retain: Retain, num_retain: int | None = None, uniform: bool = False) -> Rows:
    """Forget and retain pictures, each under its own prompt.

    The forget rows mean what the concept becomes (`relabelled`, the teacher's prediction) or are what they show (the noise,
    which `uniform` draws from U(0, 1) for them).
    """
    data = step.data
    own = step.randint(len(data.forget_latents), step.forget_batch_size)
    kept = step.randint(len(data.retain_latents), step.retain_batch_size if num_retain is None else num_retain)
    choice = step.randint(data.forget_relabel.shape[1], len(own))
    latents = torch.cat([data.forget_latents[own], data.retain_latents[kept]])
    noisy_latents, timesteps, noise = step.noisy(latents)
    if uniform:
        noise[: len(own)] = torch.rand(noise[: len(own)].shape, generator=step.generator)
        noisy_latents = step.family.add_noise(latents, noise, timesteps)
    asked = torch.cat([data.forget_prompt[own], data.retain_prompt[kept]])
    meant = torch.cat([data.forget_relabel[own, choice], data.retain_prompt[kept]]) if relabelled else asked
    forget = torch.arange(len(latents)) < len(own)
    return Rows(
        noisy_latents=noisy_latents,
        timesteps=timesteps,
        noise=step.family.target(latents, noise, timesteps),
        asked=asked,
        meant=meant,
        distilled=torch.where(forget, torch.tensor(relabelled), torch.tensor(retain == "distill")),
        forget=forget,
        num_forget=len(own),
        num_retain=len(kept),
    )


def two_losses(
    step: Step, part: Rows, target: Tensor, conditioning: Conditioning | None = None
) -> tuple[Tensor, Tensor, Figures]:
    """A part's shares of the mean squared errors of the forget and of the retain rows, in one forward pass; of no row: zero."""
    if not len(part):
        nothing = torch.zeros((), requires_grad=True)
        return nothing, nothing, {"forget_loss": 0.0, "retain_loss": 0.0}
    conditioning = step.data.conditioning(part.asked) if conditioning is None else conditioning
    model_pred = step.family.predict(part.noisy_latents, part.timesteps, conditioning).float()
    target, forget = target.to(model_pred), part.forget.to(model_pred.device)
    size = target[0].numel()

    def mean(chosen: Tensor, num: int) -> Tensor:
        if part.weight is None:
            return F.mse_loss(model_pred[chosen], target[chosen], reduction="sum") / (max(1, num) * size)
        errors = (model_pred[chosen] - target[chosen]).square().flatten(1).sum(1)
        return (errors * part.weight.to(errors.device)[chosen]).sum() / (max(1, num) * size)

    forget_loss, retain_loss = mean(forget, part.num_forget), mean(~forget, part.num_retain)
    return forget_loss, retain_loss, {"forget_loss": forget_loss.item(), "retain_loss": retain_loss.item()}


def losses_apart(config: Config, step: Step, part: Rows, target: Tensor) -> tuple[Tensor, Figures]:
    """A part's shares of (forget, retain), as a method's loss whose two gradients are combined by the method itself."""
    forget_loss, retain_loss, figures = two_losses(step, part, target)
    return torch.stack([forget_loss, retain_loss]), figures


def keys_and_values(family: Family) -> set[str]:
    """Names of the weights that make the cross-attentions' keys and values of the text."""
    return {f"{name}.{part}.weight" for name in family.cross_attention() for part in ("to_k", "to_v")}


def dot(one: Gradients, other: Gradients) -> float:
    """The inner product over all salient weights, summed in float64."""
    return sum(float((exact(one[name]) * exact(other[name])).sum()) for name in one)


@dataclass(frozen=True)
class Method:
    """A method as the run and the training loop see it; its own part is None where it has none."""

    line: str
    """What it does, for `erase concepts`."""
    paper: str
    """Authors, venue, arXiv id."""
    rows: Callable[[Any, Step], Rows] | None
    """The pictures of one step; None: there are no steps."""
    loss: Callable[[Any, Step, Rows, Tensor], tuple[Tensor, Figures]] | None
    """A part's share of the step's loss, a scalar; or of (forget, retain), whose gradients `combine` makes into one."""
    targets: Callable[[Any, Step, Rows], Tensor] = lambda _, step, rows: step.targets(rows)
    """What the model should predict, while the teacher's weights are in place."""
    combine: Callable[[Any, Gradients, Gradients], Gradients] | None = None
    """One gradient of the forget loss's and the retain loss's."""
    extra_gradients: Callable[[Any, Step, SalientWeights, Dealt, float, int], Figures] | None = None
    """Adds to a step's gradients what is not the loss's; given the loss scale, and a seed for what it draws."""
    prepare: Callable[[Any, Step, SalientWeights], Step] = lambda _, step, __: step
    """The view of the run, changed by what must be known before the first step and again after a stop."""
    start: Callable[[Any, Step, SalientWeights], Figures] | None = None
    """What is done to the weights before the first step."""
    scope: Callable[[Any, Family], set[str]] | None = None
    """The weights that the method may change; None: all."""
    falls: bool = True
    """Whether forgetting shows as a falling error of the forget rows (else `train.keep: best` has nothing to go by)."""
    remake: Callable[..., None] | None = None
    """Makes a whole new model in a folder where the others change weights."""
