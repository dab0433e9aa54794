"""The full SDXL UNet (2.57 B random weights, bfloat16) on one machine: saliency, the mask at density 0.01, one training step.

    python -m benchmarks.sdxl [--quick]

Latents of 16 x 16, the smallest that its three levels take with room to attend. Memory is the process's largest resident
size in each phase, less what it was before the model was made.
"""

import time

import torch

from benchmarks.full_size import arguments, build_unet, peak_rss, report, rss
from erase.saliency import num_salient, saliency, top_mask
from erase.salient import LeanOptimizer, SalientWeights


def main() -> None:
    options = arguments(__doc__)
    kind, density = ("quick", 0.1) if options.quick else ("sdxl", 0.01)
    before = rss()
    figures: dict[str, float] = {}
    with peak_rss() as whole:
        unet = build_unet(kind, torch.bfloat16)
        unet.enable_gradient_checkpointing()
        num_weights = sum(parameter.numel() for parameter in unet.parameters())
        latents = torch.randn(1, 4, 16, 16, dtype=torch.bfloat16)
        embeds = torch.randn(1, 77, unet.config.cross_attention_dim, dtype=torch.bfloat16)
        added = {"text_embeds": torch.randn(1, 1280, dtype=torch.bfloat16), "time_ids": torch.randn(1, 6).bfloat16()}

        def loss() -> torch.Tensor:
            extra = {} if options.quick else {"added_cond_kwargs": added}
            return unet(latents, torch.tensor([500]), embeds, **extra).sample.float().square().mean()

        began = time.monotonic()
        scores = saliency(unet, (loss() for _ in range(1)))
        figures["saliency_s"] = round(time.monotonic() - began, 1)
        began = time.monotonic()
        mask = top_mask(scores, density)
        figures["selection_s"] = round(time.monotonic() - began, 1)
        del scores
        salient = SalientWeights(unet, mask, lean=True)
        chosen = num_salient(mask)
        del mask
        optimizer = LeanOptimizer(salient, lambda values: torch.optim.Adam(values, 1e-5, foreach=True))
        began = time.monotonic()
        loss().backward()
        norm = optimizer.gradient_norm()
        optimizer.step(1e-5, (1 / (norm + 1e-6)).clamp(max=1))
        figures["step_s"] = round(time.monotonic() - began, 1)
        training = rss()
    figures |= {
        "num_weights": num_weights,
        "num_salient": chosen,
        "peak_gb": round((whole[0] - before) / 1e9, 2),
        "training_gb": round((training - before) / 1e9, 2),
    }
    assert chosen == int(density * num_weights)
    report("sdxl", figures, {"peak_gb": 22.0}, {}, options.quick)


if __name__ == "__main__":
    main()
