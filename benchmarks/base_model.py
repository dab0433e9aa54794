"""The embedded model as shipped: every object x style cell, read by the judge, and how fast it draws.

    python -m benchmarks.base_model [--quick] [--model FOLDER]

The last line is one JSON object with the figures, the bars and `ok`; without --quick it is kept in results/.
"""

import argparse
import itertools
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.environment import environment
from erase.concepts import Prompt
from erase.quiet import quiet_libraries
from eval.detectors import EmojiJudge, Reading
from eval.measure import Share
from pipelines.emoji.render import save_grid
from pipelines.family import Family
from pipelines.load import load

RESULTS = Path(__file__).parent / "results"
JUDGED = ("objects", "styles", "none", "objects_elsewhere", "styles_elsewhere", "no_style")
BARS = {
    "judge_objects": 0.97,
    "judge_styles": 0.95,
    "judge_none": 0.95,
    "judge_objects_elsewhere": 0.95,
    "judge_styles_elsewhere": 0.9,
    "judge_no_style": 0.9,
    "objects": 0.96,
    "styles": 0.92,
    "worst_object": 0.85,
    "pictures_per_s": 4.0,
    "one_picture_s": 2.0,
}


def timed(family: Family, prompts: list[Prompt], arguments: argparse.Namespace) -> tuple[Tensor, float, float]:
    """A picture of every prompt, how many of them a second, and the seconds that one alone takes."""
    began = time.monotonic()
    latents = family.generate(
        [p.text for p in prompts],
        list(range(5000, 5000 + len(prompts))),
        num_inference_steps=arguments.steps,
        guidance_scale=arguments.guidance_scale,
        batch_size=48,
    )
    pictures = family.decode_latents(latents)
    rate = len(prompts) / (time.monotonic() - began)
    began = time.monotonic()
    family.pipeline("a dog", num_inference_steps=20, guidance_scale=3.0, generator=torch.Generator().manual_seed(0))
    return pictures, rate, time.monotonic() - began


def read(prompts: list[Prompt], readings: list[Reading]) -> dict[str, Any]:
    """What share of the pictures shows what was asked for, over all and by name."""
    by_name: dict[str, Share] = defaultdict(lambda: Share(0, 0))
    objects = styles = none = Share(0, 0)
    for prompt, reading in zip(prompts, readings, strict=True):
        right = Share(int(reading.object == prompt.object), 1), Share(int(reading.style == prompt.style), 1)
        objects, styles = objects + right[0], styles + right[1]
        none = none + Share(int(reading.object is None), 1)
        by_name[str(prompt.object)] = by_name[str(prompt.object)] + right[0]
        by_name[str(prompt.style)] = by_name[str(prompt.style)] + right[1]
    worst = min(dict.fromkeys(str(prompt.object) for prompt in prompts), key=lambda name: by_name[name].value)
    return {
        "objects": objects.value,
        "styles": styles.value,
        "none": none.value,
        "worst_object": by_name[worst].value,
        "worst_object_name": worst,
        "n": len(prompts),
        "by_name": {name: round(share.value, 3) for name, share in by_name.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one picture a cell, nothing kept")
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--guidance-scale", type=float, default=3.0)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--grid", type=Path, help="write the first picture of every cell here")
    arguments = parser.parse_args()
    quiet_libraries()
    family, judge = load(arguments.model), EmojiJudge()
    assert family.vocabulary is not None
    seeds = 1 if arguments.quick else 4
    cells = list(itertools.product(range(seeds), family.vocabulary.objects, family.vocabulary.styles))
    prompts = [family.vocabulary.prompt(concept, style, seed) for seed, concept, style in cells]
    pictures, rate, one = timed(family, prompts, arguments)
    if arguments.grid:
        save_grid(pictures[: len(prompts) // seeds], 18, arguments.grid, scale=2)
    figures = {f"judge_{key}": judge.accuracy[key] for key in JUDGED} | read(prompts, judge(pictures))
    figures |= {"pictures_per_s": round(rate, 2), "one_picture_s": round(one, 2)}
    ok = all(figures[key] <= bar if key == "one_picture_s" else figures[key] >= bar for key, bar in BARS.items())
    report = {"figures": figures, "bars": BARS, "ok": ok, "environment": environment()}
    if not arguments.quick:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "base_model.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
