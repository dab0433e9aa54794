"""Concept inversion (CCE, Pham et al., ICLR 2024, arXiv 2308.01508), by textual inversion (Gal et al., ICLR 2023).

One new word is learned: the vector which, read where the sentences name the concept, makes the frozen model's own denoising
loss on a few pictures of the concept smallest. Pictures are then drawn with it, from other seeds, in the sentences that ask
for the concept. Several starts are learned side by side; the one with the smallest loss on fresh noise is drawn with.

On the base no start is the concept's name: the attack must find there what it was not given, which shows that it can.
"""

import torch
from pydantic import Field
from torch import Tensor

from erase.methods.base import Config as Settings
from eval.attacks.base import Bar, Outcome, Probe, Scene, Side
from eval.attacks.denoising import draw, levels, noise_for, slot_name, with_slot, word_gradients, word_losses
from eval.attacks.lean import ROWS_AT_ONCE, parts
from eval.measure import Share
from pipelines.family import Conditioning, Family

OFFSET = 11_000_000  # of this probe's seeds


class Config(Settings):
    """How the word is learned and used."""

    steps: int = Field(200, ge=1)
    """Adam's steps."""
    starts: int = Field(3, ge=1)
    """Vectors learned side by side: the first starts from the concept's name (not on the base), the others from other words."""
    batch_size: int = Field(8, ge=1)
    """Noised reference pictures in each step, the same for all starts."""
    learning_rate: float = Field(0.5, gt=0)
    """Adam's at the first step, in units of the root mean square of the text encoder's word vectors; it falls linearly to 0."""
    check_size: int = Field(64, ge=1)
    """Noised reference pictures by which the best start is chosen."""
    num_pictures: int = Field(24, ge=1)
    """Pictures drawn with the learned word."""
    rows_at_once: int | None = Field(None, ge=1)
    """Rows whose activations are held at once; affects memory and speed only. None: all; 4 for full-size models."""


def run(side: Side, scene: Scene, config: Config, bar: Bar) -> Outcome:
    """The share of the pictures drawn with the learned word in which the concept is seen."""
    family = side.family
    latents = family.encode_images(scene.references)
    sentences = [with_slot(prompt, scene.concept, k) for k, prompt in enumerate(scene.reference_prompts)]
    first = first_vectors(family, scene, config.starts, named=side.role != "base")
    learned = learn(family, latents, sentences, first, config, scene.seed + OFFSET, bar)
    losses = [check(family, latents, sentences, vectors, config, scene.seed + OFFSET) for vectors in (first, learned)]
    best = int(losses[1].argmin())
    prompts = scene.asked(config.num_pictures)
    asked = [with_slot(prompt, scene.concept, k) for k, prompt in enumerate(prompts)]
    with torch.no_grad():
        conditioning = family.encode_slots(asked, [vectors[best].expand(len(asked), 1, -1) for vectors in learned])
    pictures = draw(side, scene, conditioning, range(scene.seed + OFFSET, scene.seed + OFFSET + len(asked)), bar)
    seen = tuple(scene.sees(pictures))
    captions = tuple(sentence.replace("{}", "*") for sentence in asked)
    figures = {"loss before": float(losses[0][best]), "loss after": float(losses[1][best])}
    return Outcome(Share(sum(seen), len(seen)), pictures, seen, captions, figures)


def first_vectors(family: Family, scene: Scene, starts: int, *, named: bool) -> list[Tensor]:
    """Where each start begins, (S, D) for each encoder: the mean of the name's words (`named`), random other words.

    Of the name's words those count that are tokens by themselves; where none is, the mean of all words stands for the name.
    """
    generator = torch.Generator().manual_seed(scene.seed + OFFSET)
    words, tables = family.whole_words(), family.word_tables()
    own = [token for token, text in words.items() if text in slot_name(scene.concept).lower().split()]
    others = torch.tensor([token for token in words if token not in own])
    drawn = others[torch.randint(len(others), (starts,), generator=generator)]
    if not named:
        return [table[drawn] for table in tables]
    return [torch.cat([table[own or list(words)].mean(0, keepdim=True), table[drawn[1:]]]) for table in tables]


def learn(
    family: Family, latents: Tensor, sentences: list[str], first: list[Tensor], config: Config, seed: int, bar: Bar
) -> list[Tensor]:
    """The learned vectors (S, D) for each encoder; every start sees the same noise."""
    generator = torch.Generator().manual_seed(seed)
    vectors = [values.clone().requires_grad_(True) for values in first]
    units = [float(table.square().mean().sqrt()) for table in family.word_tables()]
    optimizer = torch.optim.Adam(
        [{"params": [v], "unit": unit} for v, unit in zip(vectors, units, strict=True)], betas=(0.9, 0.99)
    )
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * group["unit"] * (1 - step / config.steps)
        rows = torch.randint(len(latents), (config.batch_size,), generator=generator)
        noised = noised_rows(family, latents, sentences, vectors, rows, generator)
        weight = 1 / config.batch_size  # of a start's loss the mean counts
        for values, gradient in zip(
            vectors, word_gradients(family, *noised, vectors, config.rows_at_once, weight), strict=True
        ):
            values.grad = gradient  # by hand: a backward pass would leave gradients on a model whose weights take them
        optimizer.step()
        bar.advance()
    return [values.detach() for values in vectors]


@torch.no_grad()
def check(family: Family, latents: Tensor, sentences: list[str], vectors: list[Tensor], config: Config, seed: int) -> Tensor:
    """Each start's loss (S,) on noise that learning never drew, the same at every call."""
    generator = torch.Generator().manual_seed(seed + 1)
    losses = []
    for rows in torch.arange(config.check_size).remainder(len(latents)).split(config.batch_size):
        many, conditioning, timesteps, noise = noised_rows(family, latents, sentences, vectors, rows, generator)
        found = [
            word_losses(family, many[part], {k: v[part] for k, v in conditioning.items()}, timesteps[part], noise[part])
            for part in parts(len(many), config.rows_at_once)
        ]
        losses.append(len(rows) * torch.cat(found).view(-1, len(rows)).mean(1))
    return torch.stack(losses).sum(0) / config.check_size


def noised_rows(
    family: Family, latents: Tensor, sentences: list[str], vectors: list[Tensor], rows: Tensor, generator: torch.Generator
) -> tuple[Tensor, Conditioning, Tensor, Tensor]:
    """(latents, conditioning, timesteps, noise) of those pictures (B,) under each start's word, (S * B, ...), start by start.

    The conditioning has the gradient to the vectors (S, D).
    """
    starts, num = len(vectors[0]), len(rows)
    timesteps, noise = levels(family, num, generator), noise_for(latents[rows], generator)
    words = [values[:, None, None].expand(-1, num, 1, -1).flatten(0, 1) for values in vectors]
    conditioning = family.encode_slots([sentences[row] for row in rows.tolist()] * starts, words)
    again = [tensor.repeat(starts, *[1] * (tensor.dim() - 1)) for tensor in (latents[rows], timesteps, noise)]
    return again[0], conditioning, again[1], again[2]


PROBE = Probe(
    line="a new word learned from pictures of the concept, the model frozen",
    paper="Pham et al., ICLR 2024, arXiv 2308.01508",
    config=Config,
    quick={"steps": 30, "starts": 2, "check_size": 16, "num_pictures": 12},
    full_size={"rows_at_once": ROWS_AT_ONCE},
    run=run,
    total=lambda config, scene: config.steps + config.num_pictures,
)
