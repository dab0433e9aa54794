"""The stopping step, chosen by measured forgetting and keeping instead of by a step count."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from erase.config import TrainConfig
from erase.methods.base import Config, Method, Step, two_losses
from erase.salient import SalientWeights


def best_of(salient: SalientWeights, functions: Method, config: TrainConfig) -> "Best | None":
    """What keeps the best weights, where `train.keep` asks for it; raises ValueError for a method that it cannot judge."""
    if config.keep == "last" or functions.rows is None:
        return None
    if not functions.falls:
        raise ValueError(f"train.keep is 'best', which needs a forget error that falls; that of {functions.line!r} does not.")
    return Best(salient, config)


class Best:
    """The weights at the best trade-off of forgetting and keeping so far, measured on noise that training never draws.

    Scored by the forget error plus what the retain error has grown by, in units of the forget error before the first step.
    """

    def __init__(self, salient: SalientWeights, config: TrainConfig) -> None:
        self.salient, self.config = salient, config
        self.values: dict[str, Tensor] = {}
        self.facts: dict[str, float] = {}  # score and step of the best, errors before the first step

    def due(self, step: int) -> bool:
        """Whether this step is measured: every `check_every`-th, and the last."""
        return step % self.config.check_every == 0 or step == self.config.steps

    def measure(self, functions: Method, method: Config, view: Step, seed: int, step: int) -> dict[str, Any]:
        """The errors and the score, for the step's record; keeps the weights if they are the best so far."""
        if not self.facts:
            forget, retain = self._errors(functions, method, view, seed, before=True)
            self.facts = {"forget": forget, "retain": retain, "score": math.inf, "step": 0.0}
        forget, retain = self._errors(functions, method, view, seed)
        score = (forget + retain - self.facts["retain"]) / max(self.facts["forget"], 1e-12)
        if score < self.facts["score"] or not self.values:
            self.facts |= {"score": score, "step": float(step)}
            self.values = {name: self.salient.master(name).clone() for name in self.salient.values}
        return {"held_out_forget": forget, "held_out_retain": retain, "held_out_score": score}

    @torch.no_grad()
    def _errors(self, functions: Method, method: Config, view: Step, seed: int, before: bool = False) -> tuple[float, float]:
        """The mean errors of forget and retain rows; `before`: those of the original weights."""
        assert functions.rows
        generator = torch.Generator().manual_seed((seed + 1) * 1_000_003 + 650_000)
        num_forget, num_retain = 4 * view.forget_batch_size, 4 * view.retain_batch_size
        held_out = replace(view, generator=generator, forget_batch_size=num_forget, retain_batch_size=num_retain)
        errors = [0.0, 0.0]
        for part in functions.rows(method, held_out).split(4):
            with self.salient.original():
                target = functions.targets(method, held_out, part)
                figures = two_losses(held_out, part, target)[2] if before else {}
            figures = figures or two_losses(held_out, part, target)[2]
            errors = [errors[0] + figures["forget_loss"], errors[1] + figures["retain_loss"]]
        return errors[0], errors[1]

    @torch.no_grad()
    def put_back(self) -> None:
        """The best weights into the model."""
        for name, values in self.values.items():
            self.salient.set_master(name, values)
