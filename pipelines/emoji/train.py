"""Train the embedded model from scratch: `python -m pipelines.emoji.train` (after `python -m pipelines.emoji.prepare`).

Stages: tokenizer and text encoder, autoencoder, judge, UNet. Each is seeded, writes a checkpoint every five minutes and
resumes from it; a finished stage is skipped. `--without dog` and `--without-style neon` train a model that never saw a
concept (the exact-unlearning yardstick). Two processes of one thread each train faster than one of two:
`OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m pipelines.emoji.train --threads 1`.
The result is a diffusers folder with float16 weights, and `judge/` beside it.
"""

import argparse
import json
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from torch import nn

from pipelines.emoji.autoencoder import build_autoencoder, train_autoencoder
from pipelines.emoji.denoiser import build_scheduler, train_unet
from pipelines.emoji.fit import world
from pipelines.emoji.judge import Judge, judge_accuracy, train_judge
from pipelines.emoji.prepare import DATA
from pipelines.emoji.render import Drawings, save_grid
from pipelines.emoji.text import PromptCache, train_text_encoder
from pipelines.emoji.tokenizer import build_tokenizer
from pipelines.emoji.vocabulary import OBJECTS, STYLES, prompt

TRAINING = Path(__file__).parent / "training"
WEIGHTS = Path(__file__).parent / "weights"
SAMPLES = {"text": 64_000, "autoencoder": 60_000, "judge": 200_000, "unet": 144_000}


def sample_grid(pipeline: StableDiffusionPipeline, path: Path, seed: int = 0) -> None:
    """One picture of every object in every style, six styles a cell block, as a PNG."""
    pipeline.set_progress_bar_config(disable=True)
    pictures = []
    for concept in OBJECTS:
        texts = [prompt("{a}, {style} style", concept, style) for style in STYLES]
        generators = [torch.Generator().manual_seed(seed + i) for i in range(len(texts))]
        pictures.append(
            pipeline(texts, num_inference_steps=20, guidance_scale=3.0, generator=generators, output_type="pt").images
        )
    save_grid(torch.cat(pictures) * 2 - 1, 18, path, scale=2)


def halve(module: nn.Module) -> nn.Module:
    """The module as its float16 file will be read: every value rounded to float16, kept in float32."""
    return module.half().float()


def save_judge(judge: Judge, accuracy: dict[str, float], folder: Path) -> None:
    """Write the judge in float16 and its accuracy beside it."""
    print("judge", json.dumps(accuracy), flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    state = judge.state_dict().items()
    save_file(
        {name: (t.half() if t.is_floating_point() else t).contiguous() for name, t in state}, folder / "model.safetensors"
    )
    (folder / "accuracy.json").write_text(json.dumps(accuracy, indent=1) + "\n")


def train(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("gloo")
    rank, processes = world()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    samples = SAMPLES | ({"unet": arguments.samples} if arguments.samples else {})
    drawings = Drawings(arguments.data, tuple(arguments.without), tuple(arguments.without_style))
    seed = arguments.seed

    tokenizer = build_tokenizer(work / f"tokenizer{rank or ''}")
    encoder = train_text_encoder(tokenizer, drawings.objects, drawings.styles, work / "text", samples["text"], seed)
    if arguments.vae:
        vae = build_autoencoder().from_pretrained(arguments.vae).eval().requires_grad_(False)
    else:
        vae = train_autoencoder(drawings, work / "autoencoder", samples["autoencoder"], seed)
    if not (arguments.without or arguments.without_style):  # one judge for all models, and it knows every concept
        judge = train_judge(drawings, work / "judge", samples["judge"], seed)
        if rank == 0:
            save_judge(judge, judge_accuracy(judge, drawings, seed), arguments.out / "judge")
    prompts = PromptCache(tokenizer, halve(encoder))
    unet = train_unet(drawings, halve(vae), prompts, work / "unet", samples["unet"], seed, arguments.init)
    if rank != 0:
        return

    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=halve(unet),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    sample_grid(pipeline, work / "grid.png")
    shutil.copy(work / "grid.png", arguments.out / "grid.png")
    summary = summary_of(arguments, samples, processes)
    (arguments.out / "training.json").write_text(json.dumps(summary, indent=1) + "\n")
    pipeline.to(torch.float16).save_pretrained(arguments.out, safe_serialization=True)
    shutil.copy(Path(__file__).parent / "CARD.md", arguments.out / "README.md")
    print(f"model written to {arguments.out}; hours {summary['hours']}")


def summary_of(arguments: argparse.Namespace, samples: dict[str, int], processes: int) -> dict[str, Any]:
    """How the model was trained: settings, hours and the log of each part."""
    files = sorted(arguments.work.glob("*.jsonl"))
    logs = {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in files}
    return {
        "seed": arguments.seed,
        "samples": samples,
        "without": arguments.without,
        "without_style": arguments.without_style,
        "init": str(arguments.init) if arguments.init else None,
        "hours": {name: round(rows[-1]["seconds"] / 3600, 3) for name, rows in logs.items()},
        "threads": arguments.threads,
        "processes": processes,
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "log": logs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA / "sprites.npz", help="the data set that prepare.py wrote")
    parser.add_argument("--work", type=Path, default=TRAINING, help="folder for checkpoints and logs")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder for the finished model")
    parser.add_argument("--without", action="append", default=[], choices=OBJECTS, help="leave an object out")
    parser.add_argument("--without-style", action="append", default=[], choices=STYLES, help="leave a style out")
    parser.add_argument("--samples", type=int, help=f"samples the UNet is trained on (default {SAMPLES['unet']})")
    parser.add_argument("--vae", type=Path, help="use this autoencoder instead of training one")
    parser.add_argument("--init", type=Path, help="start the UNet from this model folder instead of from noise")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
