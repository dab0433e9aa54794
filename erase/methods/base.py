"""What every method shares: its configuration's rules, and the view of the run that its loss is given."""

from collections.abc import Callable
from dataclasses import dataclass

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
class Step:
    """What a method's loss gets at each step; everything random comes from `generator`."""

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
        device, dtype = latents.device, latents.dtype
        timesteps, noise = timesteps.to(device), noise.to(device, dtype)
        return self.family.add_noise(latents, noise, timesteps), timesteps, noise
