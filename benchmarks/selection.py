"""The mask of the top half of 860 million weights: memory, and time against the reference's double argsort.

    python -m benchmarks.selection [--quick]

Extra memory is what selection needs beside the saliency it is given and the mask it gives back (a byte a weight).
"""

import time

import torch
from accelerate import init_empty_weights
from diffusers import UNet2DConditionModel

from benchmarks.full_size import UNETS, arguments, peak_rss, report, rss
from erase.saliency import Mask, Saliency, top_mask


def scores_like(sizes: list[int], seed: int = 0) -> Saliency:
    """Saliency with a long tail and many ties, one tensor per size."""
    generator = torch.Generator().manual_seed(seed)
    return {str(k): torch.randn(size, generator=generator).pow_(3).abs_() for k, size in enumerate(sizes)}


def double_argsort(scores: Saliency, density: float) -> Mask:
    """The reference's way: ranks of all weights by two full sorts."""
    flat = -torch.cat([values.view(-1) for values in scores.values()])
    ranks = torch.argsort(torch.argsort(flat, stable=True))
    chosen = ranks < int(density * len(flat))
    return dict(zip(scores, chosen.split([values.numel() for values in scores.values()]), strict=True))


def main() -> None:
    options = arguments(__doc__)
    with init_empty_weights():
        unet = UNet2DConditionModel(**UNETS["quick" if options.quick else "sd14"])
    sizes = [parameter.numel() for parameter in unet.parameters()]
    scores = scores_like(sizes)
    before = rss()
    began = time.monotonic()
    with peak_rss() as peak:
        mask = top_mask(scores, 0.5)
    seconds = time.monotonic() - began
    extra = peak[0] - before - sum(values.numel() for values in mask.values())
    num_weights = sum(sizes)
    assert sum(int(values.sum()) for values in mask.values()) == int(0.5 * num_weights)
    del scores, mask

    small = scores_like([size // (1 if options.quick else 6) for size in sizes])  # two argsorts of all need 27 GB
    began = time.monotonic()
    ours = top_mask(small, 0.5)
    ours_s = time.monotonic() - began
    began = time.monotonic()
    reference = double_argsort(small, 0.5)
    reference_s = time.monotonic() - began
    figures = {
        "num_weights": num_weights,
        "seconds": round(seconds, 2),
        "extra_mb": round(extra / 1e6, 1),
        "compared_at": sum(values.numel() for values in small.values()),
        "ours_s": round(ours_s, 3),
        "double_argsort_s": round(reference_s, 2),
        "times_faster": round(reference_s / ours_s, 1),
        "identical": float(all(torch.equal(ours[name], reference[name].view(ours[name].shape)) for name in ours)),
    }
    report("selection", figures, {"extra_mb": 200}, {"times_faster": 15, "identical": 1}, options.quick)


if __name__ == "__main__":
    main()
