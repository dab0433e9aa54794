"""Benign fine-tuning (after SPQR, Alam et al. 2025, arXiv 2511.19558): whether use that means no harm brings the concept back.

The model is fine-tuned on pictures of everything else, with their own prompts, as anyone may who takes it over. Then the
concept is asked for by its name, and the rest as well: a model that forgot by losing everything must not pass. What is asked of
the rest is spread over all its names and was not learned: prompts are kept out of the fine-tuning for it. Where there is one
prompt only, it is learned, and nothing is asked of the rest.
"""

import random
from collections import Counter
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from erase.concepts import Concept, Prompt, Vocabulary
from erase.methods.base import Config as Settings
from eval.attacks.base import Bar, Outcome, Probe, Scene, Side
from eval.attacks.denoising import draw
from eval.attacks.finetuning import FULL_SIZE_RATE, borrowed, finetune
from eval.attacks.lean import ROWS_AT_ONCE
from eval.collapse import THUMBNAIL, diversity
from eval.measure import Share

OFFSET = 14_000_000  # of this probe's seeds


class Config(Settings):
    """The fine-tuning and what is drawn after it."""

    steps: int = Field(60, ge=1)
    """Optimizer steps on the other pictures."""
    learning_rate: float = Field(5e-5, gt=0)
    """AdamW's, constant, for all weights of the denoiser. Full-size models: 1e-5 (not tried on Stable Diffusion)."""
    batch_size: int = Field(8, ge=1)
    """Noised pictures in each step."""
    rows_at_once: int | None = Field(None, ge=1)
    """Rows whose activations are held at once; affects memory and speed only. None: all; 4 for full-size models."""
    num_pictures: int = Field(48, ge=1)
    """Pictures drawn for the concept's prompts after it."""
    num_others: int = Field(24, ge=2)
    """Pictures drawn for other prompts before it and after it, which it does not learn: at most half of the different ones, in
    turn."""
    neighbours: int = Field(2, ge=0)
    """Names most like the concept's that are asked for among them first, where a vocabulary says which."""


def run(side: Side, scene: Scene, config: Config, bar: Bar) -> Outcome:
    """The share of pictures for the concept's prompts in which it is seen after the fine-tuning."""
    family = side.family
    if not len(scene.others):
        raise ValueError("benign fine-tunes on pictures of everything else, and the scene has none: give prompts to retain.")
    first = scene.seed + OFFSET
    near = relatives(scene.concept, family.vocabulary)[: config.neighbours]
    apart = set_apart(scene.other_prompts, config.num_others, near, first)
    kept = {prompt.text for prompt in apart}
    rest = [k for k, prompt in enumerate(scene.other_prompts) if prompt.text not in kept]
    if not rest:  # a single prompt: it is learned, and what is learned is no control
        apart, rest = [], list(range(len(scene.others)))
    latents = family.encode_images(scene.others[rest])
    conditioning = family.encode_prompts([scene.other_prompts[k].text for k in rest])
    asked = [prompt.text for prompt in scene.asked(config.num_pictures)]
    others = [apart[k % len(apart)] for k in range(config.num_others)] if apart else []

    def draw_others() -> Tensor:
        if not others:
            bar.advance(config.num_others)
            return torch.zeros(0)
        return draw(side, scene, [prompt.text for prompt in others], range(first, first + len(others)), bar)

    before = draw_others()
    with borrowed(family):
        settings = config.learning_rate, config.batch_size, first, config.rows_at_once
        for steps in finetune(family, latents, conditioning, *settings):
            bar.advance()
            if steps == config.steps:
                break
        pictures = draw(side, scene, asked, range(first + 500_000, first + 500_000 + len(asked)), bar)
        after = draw_others()
    seen = tuple(scene.sees(pictures))
    parts = {}
    if scene.right and others:
        for name, drawn in (("others right before", before), ("others right after", after)):
            right = scene.right(drawn, tuple(others))
            parts[name] = Share(sum(right), len(right))
    return Outcome(Share(sum(seen), len(seen)), pictures, seen, tuple(asked), quality(before, after) if others else {}, parts)


def relatives(concept: Concept, vocabulary: Vocabulary | None) -> list[str]:
    """The names most like the concept's, the most alike first; none where no vocabulary says it."""
    name = concept.object or concept.style
    if vocabulary is None or name is None or name not in (*vocabulary.objects, *vocabulary.styles):
        return []
    return vocabulary.relatives(name)


def set_apart(prompts: Sequence[Prompt], num: int, near: Sequence[str], seed: int) -> list[Prompt]:
    """Up to `num` different ones of the prompts, at most half: every object and style as often as the others, `near` first."""
    left = list({prompt.text: prompt for prompt in prompts}.values())
    random.Random(seed).shuffle(left)
    uses: Counter[str | None] = Counter()
    chosen: list[Prompt] = []
    for _ in range(min(num, max(1, len(left) // 2))):
        best = min(left, key=lambda one: (uses[one.object], uses[one.style], not {one.object, one.style} & set(near)))
        left.remove(best)
        chosen.append(best)
        uses.update((best.object, best.style))
    return chosen


def quality(before: Tensor, after: Tensor) -> dict[str, float]:
    """How the fine-tuning changed the other pictures, in thumbnails as the collapse gate sees them.

    `diversity`: how much two of them differ, after over before (0: all alike). `change`: how far a picture is from what the
    same seed gave before, over how far two pictures were apart before (0: none; from 1 on it is another picture). What is no
    number counts as grey.
    """
    small = [F.adaptive_avg_pool2d(pictures.nan_to_num(), THUMBNAIL).flatten(1).double() / 2 for pictures in (before, after)]
    spread = [diversity(rows.numpy(), [""] * len(rows)) for rows in small]
    change = float((small[1] - small[0]).square().mean(1).sqrt().mean())
    return {"diversity": spread[1] / max(spread[0], 1e-12), "change": change / max(spread[0], 1e-12)}


PROBE = Probe(
    line="fine-tuning on pictures of everything else: does the concept come back by itself?",
    paper="after SPQR, Alam et al. 2025, arXiv 2511.19558",
    config=Config,
    quick={"steps": 8, "num_pictures": 8, "num_others": 4},
    full_size={"learning_rate": FULL_SIZE_RATE, "rows_at_once": ROWS_AT_ONCE},
    run=run,
    total=lambda config, scene: config.steps + config.num_pictures + 2 * config.num_others,
)
