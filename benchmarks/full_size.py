"""Models of full size with random weights, memory as the operating system sees it, and how a benchmark reports."""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import init_empty_weights
from diffusers import UNet2DConditionModel
from torch import nn

from benchmarks.environment import environment

RESULTS = Path(__file__).parent / "results"
UNETS: dict[str, dict[str, Any]] = {
    "sd14": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "quick": {
        "sample_size": 16,
        "block_out_channels": (64, 128, 128, 128),
        "cross_attention_dim": 64,
        "attention_head_dim": 4,
    },
    "sdxl": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}


def random_weights(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A model built on the meta device, given memory and small random weights."""
    model = nn.Module.to(model, dtype).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(float(name.endswith("weight")))
            else:
                parameter.normal_(0, 0.02, generator=generator)
    return model.eval()


def build_unet(kind: str, dtype: torch.dtype = torch.float32) -> UNet2DConditionModel:
    """The UNet of that architecture with random weights."""
    with init_empty_weights():
        unet = UNet2DConditionModel(**UNETS[kind])
    return random_weights(unet, dtype)


def rss() -> int:
    """Resident bytes of this process."""
    return int(psutil.Process().memory_info().rss)


@contextmanager
def peak_rss() -> Iterator[list[int]]:
    """The largest resident size while the block ran, sampled every 5 ms; in the list when it ends."""
    seen, running = [rss()], True

    def watch() -> None:
        while running:
            seen.append(rss())
            time.sleep(0.005)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        running = False
        thread.join()
        seen[:] = [max(*seen, rss())]


def in_a_process(module: str, environ: dict[str, str] | None = None, **options: Any) -> dict[str, Any]:
    """The JSON on the last line of the module called with `--part` and these options, in a process of its own."""
    command = [sys.executable, "-m", module, "--part", json.dumps(options)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | (environ or {}))
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def arguments(doc: str | None) -> argparse.Namespace:
    """`--quick` (a small model, nothing kept) and, for the benchmark's own processes, `--part`."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--quick", action="store_true", help="a small model, nothing kept, bars not meant for it")
    parser.add_argument("--sizes", default="32,64", help="latent sizes, where a benchmark has several")
    parser.add_argument("--part", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args()


def report(name: str, figures: dict[str, Any], at_most: dict[str, float], at_least: dict[str, float], quick: bool) -> None:
    """Print the figures, the bars and `ok` as the last line; keep them in results/ unless it was a quick run."""
    ok = all(figures[key] <= bar for key, bar in at_most.items()) and all(figures[key] >= bar for key, bar in at_least.items())
    bars = {key: f"<= {bar}" for key, bar in at_most.items()}
    for key, bar in at_least.items():
        bars[key] = f">= {bar}" + (f", {bars[key]}" if key in bars else "")
    result = {"figures": figures, "bars": bars, "ok": ok, "quick": quick, "environment": environment()}
    if not quick:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
