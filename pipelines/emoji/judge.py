"""The judge: a small ResNet that reads object and style off a picture, each with a class for "none of them".

Most of the drawings it learns from are on grounds picked at random: every style has one ground in the pictures that the model
was trained on, and a judge that knew no others would read the style off the ground, and miss objects on a strange one.
What "none of the styles" is, it learns from line drawings in other inks and from drawings half in one style, half in another.
"""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from pipelines.emoji.fit import fit, share_of
from pipelines.emoji.render import SIZE, Drawings, glow
from pipelines.emoji.vocabulary import OBJECTS, STYLES

NONE = len(OBJECTS)  # the object label of a picture that shows none of the objects
LINES = ("line art", "neon")  # the styles that have lines alone
NO_STYLE = len(STYLES)  # the style label of a picture in none of the styles
BATCH_SIZE = 64
ELSEWHERE = 0.9  # the share of drawings on a ground picked at random


class Block(nn.Module):
    """A strided residual block."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, 2, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.skip = nn.Conv2d(channels_in, channels_out, 1, 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C', H / 2, W / 2)."""
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.skip(x) + self.norm2(self.conv2(h)))


class Judge(nn.Module):
    """Object logits (B, 25) and style logits (B, 7), the last of each "none", of pictures (B, 3, 48, 48) in [-1, 1]."""

    def __init__(self, widths: tuple[int, ...] = (24, 48, 96, 192)) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 5, 2, 2, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
        self.blocks = nn.Sequential(*(Block(a, b) for a, b in pairwise(widths)))
        self.object_head = nn.Linear(widths[-1], len(OBJECTS) + 1)
        self.style_head = nn.Linear(widths[-1], len(STYLES) + 1)

    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pooled features (B, 192)."""
        return self.blocks(self.stem(pictures)).mean((2, 3))

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(object logits, style logits)."""
        features = self.features(pictures)
        return self.object_head(features), self.style_head(features)


def _lerp_some(a: torch.Tensor, b: torch.Tensor, share: float, generator: torch.Generator) -> torch.Tensor:
    amount = torch.rand(len(a), 1, 1, 1, generator=generator)
    chosen = torch.rand(len(a), 1, 1, 1, generator=generator) < share
    return torch.lerp(a, b, amount * chosen)


def corrupt(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Pictures as a generator draws them: some blurred, noisy, or flatter."""
    blurred = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)
    pictures = _lerp_some(pictures, blurred, 0.6, generator)
    amount = 0.12 * torch.rand(len(pictures), 1, 1, 1, generator=generator)
    pictures = pictures + amount * torch.randn(pictures.shape, generator=generator)
    return (pictures * (1 - 0.25 * torch.rand(len(pictures), 1, 1, 1, generator=generator))).clamp(-1, 1)


def pictures_of_nothing(drawings: Drawings, num: int, generator: torch.Generator) -> torch.Tensor:
    """Patch-shuffled, blended, blurred and noisy drawings, plain backgrounds, and drawings of other things.

    Half-denoised pictures are among them: a drawing drowned in smooth noise, as an erased model leaves it.
    """
    base = drawings.render(drawings.sample(num, generator), generator, elsewhere=ELSEWHERE)
    patch = SIZE // 4
    patches = F.unfold(base, patch, stride=patch)  # (B, 3 p p, 16)
    order = torch.rand(num, patches.shape[-1], generator=generator).argsort(1)
    patches = patches.gather(2, order[:, None].expand_as(patches))
    shuffled = F.fold(patches, SIZE, patch, stride=patch)
    others = [drawings.render(drawings.sample(num, generator), generator, elsewhere=ELSEWHERE) for _ in range(2)]
    blended = (base + others[0] + others[1]) / 3
    blurred = F.interpolate(F.avg_pool2d(base, 12), scale_factor=12, mode="bilinear")
    smeared = F.avg_pool2d(F.pad(shuffled, (2, 2, 2, 2), mode="replicate"), 5, 1)
    coarse = F.interpolate(torch.randn(num, 3, 12, 12, generator=generator), scale_factor=4, mode="bicubic")
    share = 0.55 + 0.45 * torch.rand(num, 1, 1, 1, generator=generator)
    drowned = (base * (1 - share) + coarse * share).clamp(-1, 1)
    flat = base[:, :, :1, :1].expand_as(base) + 0.15 * coarse * torch.rand(num, 1, 1, 1, generator=generator)
    kinds = [shuffled, blended, blurred, smeared, drowned, flat]
    if len(drawings.strangers):
        chosen = torch.randint(len(drawings.strangers), (num,), generator=generator)
        strangers = drawings.render(drawings.strangers[chosen], generator, elsewhere=ELSEWHERE)
        kinds += [strangers, strangers]
    kind = torch.randint(len(kinds), (num,), generator=generator)
    return torch.stack(kinds)[kind, torch.arange(num)].clamp(-1, 1)


def strange_manners(drawings: Drawings, index: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The same objects in no style (B, 3, 48, 48) in [-1, 1]: half as lines in another ink, half between lines and colours.

    Ink is light and not neon's on a dark ground, with a glow or without, or bright on a light ground. In between lie the
    object's drawings in this style and in another, of which one is of lines (line art, neon); of two drawings either.
    """
    num = len(index)

    def drawn(style: torch.Tensor) -> torch.Tensor:
        """The objects in these styles (B,), each at the same scale and place whenever it is drawn."""
        fits = (drawings.label[:, None] == drawings.label[index]) & (drawings.style[:, None] == style)
        chosen = torch.multinomial(fits.T.float(), 1, generator=torch.Generator().manual_seed(seed))[:, 0]
        return drawings.render(chosen, torch.Generator().manual_seed(seed)) / 2 + 0.5

    seed = int(torch.randint(2**31, (1,), generator=generator))
    own, turn = drawings.style[index], torch.rand(num, generator=generator)
    lined, coloured = (torch.tensor([k for k, name in enumerate(STYLES) if (name in LINES) == kind]) for kind in (True, False))
    other = torch.where(torch.isin(own, lined), coloured[(turn * len(coloured)).long()], lined[(turn * len(lined)).long()])
    share = 0.35 + 0.3 * torch.rand(num, 1, 1, 1, generator=generator)
    between = torch.lerp(drawn(own), drawn(other), share)

    lines = ((1 - drawn(torch.full((num,), STYLES.index("line art"))).mean(1, keepdim=True)) / 0.92).clamp(0, 1)
    dark = torch.rand(num, 1, 1, 1, generator=generator) < 0.6
    one, two = torch.rand(2, num, 3, 1, 1, generator=generator)
    light_ink = (0.5 + 0.5 * one).index_fill(1, torch.tensor([0]), 0.85)  # neon's has little red
    hue = torch.rand(num, 3, 1, 1, generator=generator).argsort(1)
    bright_ink = torch.where(hue == 0, 0.25 * one, torch.where(hue == 1, one, 0.65 + 0.35 * one))
    ink, ground = torch.where(dark, light_ink, bright_ink), torch.where(dark, 0.35 * two, 0.7 + 0.3 * two)
    lit = glow(lines) * (torch.rand(num, 1, 1, 1, generator=generator) < 0.5) * dark
    inked = torch.lerp((ground + 0.6 * ink * lit).clamp(0, 1), ink, lines)
    return torch.where(torch.rand(num, 1, 1, 1, generator=generator) < 0.5, inked, between) * 2 - 1


def train_judge(drawings: Drawings, out: Path, samples: int, seed: int) -> Judge:
    """Cross-entropy on augmented, corrupted drawings, a quarter as many pictures of nothing and in no style beside them."""
    torch.manual_seed(seed)
    judge = Judge().to(memory_format=torch.channels_last).train()
    batch_size = share_of(BATCH_SIZE)

    def loss_fn(generator: torch.Generator, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        index = drawings.sample(batch_size, generator)
        known = corrupt(drawings.render(index, generator, elsewhere=ELSEWHERE), generator)
        nothing = corrupt(pictures_of_nothing(drawings, batch_size // 4, generator), generator)
        again = index[: batch_size // 4]
        strange = corrupt(strange_manners(drawings, again, generator), generator)
        pictures = torch.cat([known, strange, nothing]).contiguous(memory_format=torch.channels_last)
        objects, styles = judge(pictures)
        labels = torch.cat([drawings.label[index], drawings.label[again], torch.full((len(nothing),), NONE)])
        manners = torch.cat([drawings.style[index], torch.full((len(again),), NO_STYLE)])
        loss = F.cross_entropy(objects, labels, label_smoothing=0.05)
        loss = loss + 0.5 * F.cross_entropy(styles[: len(manners)], manners)
        right = (objects.argmax(1) == labels).float().mean().item()
        return loss, {"loss": loss.item(), "object_accuracy": right}

    steps = samples // BATCH_SIZE
    # batch-norm statistics follow the raw weights, so the average is short
    fit({"judge": judge}, loss_fn, out=out, steps=steps, batch_size=BATCH_SIZE, learning_rate=3e-3, seed=seed, ema=0.9)
    _settle_batch_norm(judge, drawings, seed)
    return judge.eval().requires_grad_(False)


@torch.no_grad()
def _settle_batch_norm(judge: Judge, drawings: Drawings, seed: int) -> None:
    """Batch-norm statistics measured afresh over 32 batches, for the averaged weights."""
    norms = [module for module in judge.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    generator = torch.Generator().manual_seed(seed + 31)
    for _ in range(32):
        index = drawings.sample(96, generator)
        known = drawings.render(index, generator, elsewhere=ELSEWHERE)
        strange = strange_manners(drawings, index[:24], generator)
        nothing = pictures_of_nothing(drawings, 24, generator)
        judge(corrupt(torch.cat([known, strange, nothing]), generator))


@torch.no_grad()
def judge_accuracy(judge: Judge, drawings: Drawings, seed: int, num: int = 4096) -> dict[str, float]:
    """Share of right answers on held-out augmentations: objects and styles, "none" on pictures of nothing, "no_style".

    `objects_elsewhere` and `styles_elsewhere`: the same on grounds picked at random (one in twelve is the style's own).
    """
    generator = torch.Generator().manual_seed(seed + 7_777_777)
    right: Counter[str] = Counter()
    for _ in range(num // 128):
        for ground, elsewhere in (("", 0.0), ("_elsewhere", 1.0)):
            index = drawings.sample(128, generator)
            objects, styles = judge(drawings.render(index, generator, elsewhere=elsewhere))
            right[f"objects{ground}"] += int((objects.argmax(1) == drawings.label[index]).sum())
            right[f"styles{ground}"] += int((styles.argmax(1) == drawings.style[index]).sum())
        _, styles = judge(strange_manners(drawings, drawings.sample(128, generator), generator))
        right["no_style"] += int((styles.argmax(1) == NO_STYLE).sum())
        nothing, _ = judge(pictures_of_nothing(drawings, 128, generator))
        right["none"] += int((nothing.argmax(1) == NONE).sum())
    judged = num // 128 * 128
    return {key: number / judged for key, number in right.items()} | {"n": float(judged)}
