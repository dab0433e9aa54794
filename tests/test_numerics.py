"""Gradients that are missing, zero or denormal, and losses that break, end in an error that names the cause."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from erase.config import TrainConfig
from erase.data import TrainingData
from erase.methods.salun import SalUn
from erase.saliency import saliency, top_mask
from erase.salient import SalientWeights
from erase.train import train
from pipelines.stable_diffusion import StableDiffusion

SMALL = TrainConfig(steps=3, warmup_steps=0, forget_batch_size=4, retain_batch_size=3)


def test_a_loss_that_depends_on_no_weight_is_named() -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="depends on no weight; is the model frozen, or run without gradients"):
        saliency(model, [torch.tensor(1.0)])
    with torch.no_grad():
        loss = model(torch.ones(1, 3)).sum()
    with pytest.raises(ValueError, match="depends on no weight"):
        saliency(model, [loss])
    assert float(saliency(model, [model(torch.ones(1, 3)).sum()])["weight"].sum()) == 6


def test_denormal_gradients_are_no_order_and_the_smallest_normal_ones_are() -> None:
    tiny = torch.finfo(torch.float32).tiny
    model = nn.Linear(2, 1, bias=False)
    with pytest.raises(ValueError, match=r"every gradient is all but zero \(at most 5\.9e-39"):
        saliency(model, [model(torch.tensor([[tiny / 4, tiny / 2]])).sum()])
    assert saliency(model, [model(torch.tensor([[tiny / 4, tiny]])).sum()])["weight"].tolist() == [[tiny / 4, tiny]]
    with pytest.raises(ValueError, match="every gradient is zero: do the prompts reach the model"):
        top_mask({"a": torch.zeros(4)}, 0.5)
    with pytest.raises(ValueError, match="no loss to measure; is the forget set empty"):
        saliency(nn.Linear(1, 1), [])


def test_all_zero_gradients_in_training_are_named_and_nothing_is_written(
    tiny_family: StableDiffusion, tiny_data: TrainingData, tmp_path: Path
) -> None:
    """What the concept becomes is the concept: teacher and student agree, and nothing else is asked (alpha 0)."""
    same = dataclasses.replace(
        tiny_data, forget_relabel=tiny_data.forget_prompt[:, None], retain_dual=torch.full_like(tiny_data.retain_dual, -1)
    )
    mask = {name: torch.ones(p.shape, dtype=torch.bool) for name, p in tiny_family.denoiser.named_parameters()}
    before = {name: p.detach().clone() for name, p in tiny_family.denoiser.named_parameters()}
    salient = SalientWeights(tiny_family.denoiser, mask, lean=True)
    method = SalUn(alpha=0, empty_prompt_share=0, anchor_share=0)
    with pytest.raises(
        ValueError, match=r"every gradient is zero at step 1, .* do the forget prompts and what they become mean"
    ):
        list(train(tiny_family, salient, same, method, SMALL, seed=0, state=tmp_path / "state"))
    assert all(torch.equal(p, before[name]) for name, p in tiny_family.denoiser.named_parameters())
    assert not list(tmp_path.iterdir())


def test_a_broken_loss_names_step_and_batch(tiny_family: StableDiffusion, tiny_data: TrainingData) -> None:
    data = dataclasses.replace(tiny_data, forget_latents=torch.full_like(tiny_data.forget_latents, math.inf))
    mask = {name: torch.ones(p.shape, dtype=torch.bool) for name, p in tiny_family.denoiser.named_parameters()}
    salient = SalientWeights(tiny_family.denoiser, mask, lean=True)
    with pytest.raises(ValueError, match=r"became nan at step 1; .*Its batch: 4 forget and 3 retain pictures"):
        list(train(tiny_family, salient, data, SalUn(), SMALL, seed=0))
