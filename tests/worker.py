"""What test_processes.py runs in several processes: generate, rank and train on the tiny model, and keep what came out."""

import sys
from pathlib import Path
from typing import Any

import torch
from conftest import build_tiny_pipeline, family_of
from safetensors.torch import save_file

from erase.concepts import Concept
from erase.config import SETTINGS, TrainConfig
from erase.data import TrainingData, make_data, plan_data
from erase.methods.base import Config
from erase.methods.salun import SalUn
from erase.processes import main_first, rank
from erase.run import forget_losses
from erase.saliency import Mask, saliency, top_mask
from erase.salient import SalientWeights
from erase.train import train
from pipelines.emoji.tokenizer import build_tokenizer
from pipelines.load import EMOJI_VOCABULARY
from pipelines.stable_diffusion import StableDiffusion

APART: dict[str, Config] = {name: SETTINGS[name]() for name in ("munba", "erasediff", "scissorhands")}
"""The methods that weigh the forget and the retain gradient against one another: each must be whole before."""
APART["nash"] = SalUn(balance="nash")


def trained(family: StableDiffusion, data: TrainingData, mask: Mask, method: Config) -> tuple[dict[str, torch.Tensor], Any]:
    """(the weights after four steps, the records); the family's are as before."""
    before = {name: parameter.detach().clone() for name, parameter in family.denoiser.named_parameters()}
    config = TrainConfig(steps=4, learning_rate=1e-3, warmup_steps=1, forget_batch_size=5, retain_batch_size=4)
    salient = SalientWeights(family.denoiser, mask, lean=True)
    records = list(train(family, salient, data, method, config, seed=0))
    salient.close()
    after = {name: parameter.detach().clone() for name, parameter in family.denoiser.named_parameters()}
    with torch.no_grad():
        for name, parameter in family.denoiser.named_parameters():
            parameter.copy_(before[name])
    return after, records


def work(folder: Path) -> tuple[TrainingData, Mask, dict[str, torch.Tensor], list[float]]:
    """(data, mask, trained weights, losses); five batches to generate and to rank, so that two processes have a rest.

    The weights are of looking ahead, and below each name of `APART` of that method.
    """
    family = family_of(build_tiny_pipeline(build_tokenizer(folder)))
    plan = plan_data(Concept("dog", "object", object="dog"), EMOJI_VOCABULARY, ("cat",), 10, 6, 3)
    data = make_data(
        family, plan, seed=0, forget_guidance_scale=2.0, retain_guidance_scale=1.0, num_inference_steps=2, batch_size=2
    )
    mask = top_mask(saliency(family.denoiser, forget_losses(family, data, 1, 2, 0)), 0.3)
    weights, records = trained(family, data, mask, SalUn(lookahead_share=0.5, lookahead_steps=3))
    losses = [record[key] for record in records for key in ("loss", "relearner_loss", "lookahead_loss")]
    for name, method in APART.items():
        found, _ = trained(family, data, mask, method)
        weights |= {f"{name}.{tensor}": values for tensor, values in found.items()}
    return data, mask, weights, losses


def mistake() -> None:
    """A user's mistake that only the main process can see."""
    raise ValueError("the folder is full")


if __name__ == "__main__":
    out = Path(sys.argv[1])
    data, mask, weights, losses = work(out / f"tokenizer-{rank()}")
    tensors = {f"weights.{n}": t for n, t in weights.items()} | {f"mask.{n}": t for n, t in mask.items()}
    tensors |= {"forget": data.forget_latents, "retain": data.retain_latents, "losses": torch.tensor(losses)}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, out / f"{rank()}.safetensors")
    assert main_first(lambda: rank() + 10) == 10
    try:
        main_first(mistake)
    except ValueError as error:
        (out / f"{rank()}.txt").write_text(str(error))
