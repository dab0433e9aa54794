"""What every method shares: its configuration's rules, the rows it is trained on, and the view of the run it is given."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from erase.data import TrainingData
from pipelines.family import Conditioning, Family

# (noisy latents, timesteps, conditioning) -> prediction without gradient
Teacher = Callable[[Tensor, Tensor, Conditioning], Tensor]


class Config(BaseModel):
    """Frozen, no unknown keys, and the sentence under each field is its description."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


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

    def __len__(self) -> int:
        return len(self.timesteps)

    def split(self, num: int) -> list["Rows"]:
        """`num` parts in order, as equal as can be; empty where there are more parts than rows."""
        names = [field.name for field in fields(self) if isinstance(getattr(self, field.name), Tensor)]
        parts = zip(*(getattr(self, name).tensor_split(num) for name in names), strict=True)
        return [replace(self, **dict(zip(names, part, strict=True))) for part in parts]


@dataclass(frozen=True)
class Step:
    """What a method gets at each step; everything random is drawn from `generator`, in `rows` and not in `loss`.

    (Targets are computed for several steps ahead, so that the teacher's weights need not be swapped in for each.)
    """

    family: Family
    teacher: Teacher
    data: TrainingData
    forget_batch_size: int
    retain_batch_size: int
    generator: torch.Generator

    def randint(self, high: int, num: int) -> Tensor:
        """`num` integers in [0, high)."""
        return torch.randint(high, (num,), generator=self.generator)

    def noisy(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(noisy latents, timesteps, noise): uniform timesteps, one in each equal slice of the schedule."""
        num = len(latents)
        strata = torch.randperm(num, generator=self.generator) + torch.rand(num, generator=self.generator)
        steps = self.family.num_train_timesteps
        timesteps = (strata / num * steps).long().clamp(max=steps - 1)  # a sum can round up to the next whole number
        noise = torch.randn(latents.shape, generator=self.generator)
        return self.family.add_noise(latents, noise, timesteps), timesteps, noise

    def targets(self, rows: Rows) -> Tensor:
        """What the model should predict (N, C, h, w): the teacher's predictions, or the noise."""
        if bool(rows.distilled.all()):
            return self.teacher(rows.noisy_latents, rows.timesteps, self.data.conditioning(rows.meant)).float()
        chosen = rows.distilled.nonzero()[:, 0]
        target = rows.noise.clone()
        if len(chosen):
            conditioning = self.data.conditioning(rows.meant[chosen])
            target[chosen] = self.teacher(rows.noisy_latents[chosen], rows.timesteps[chosen], conditioning).float().cpu()
        return target
