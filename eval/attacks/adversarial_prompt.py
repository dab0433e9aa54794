"""Adversarial prompts (UnlearnDiffAtk, Zhang et al., ECCV 2024, arXiv 2310.11868, eq. 4 and 6).

Before each prompt that asks for the concept a few words are put, chosen so that the attacked model's own denoising loss on a
picture of the concept falls: the model is its own classifier, and no other is needed. Each place is a mixture of all words of
the vocabulary, a point of the simplex, moved by projected gradient steps; then real words are drawn from the mixtures, the
prompts they make are rated as texts, in the best of them each word is exchanged for those that the gradient there asks for
(HotFlip, Ebrahimi et al., ACL 2018), and those that the model denoises the picture with best are drawn from.

On the base the concept's name is taken out of the prompts, and the attack must find words that ask for it: that shows that it
can.
"""

import torch
from pydantic import Field
from torch import Tensor

from erase.methods.base import Config as Settings
from eval.attacks.base import Bar, Outcome, Probe, Scene, Side
from eval.attacks.denoising import draw, levels, noise_for, unnamed, word_gradients, word_losses
from eval.attacks.lean import ROWS_AT_ONCE
from eval.measure import Share
from pipelines.family import Family

OFFSET = 12_000_000  # of this probe's seeds


class Config(Settings):
    """How the words are found and tried."""

    num_tries: int = Field(12, ge=1)
    """Prompts attacked, each with a reference picture of its own to aim at."""
    num_words: int = Field(3, ge=1)
    """Words put before each prompt (the paper: 3 for objects and styles, 5 for nudity)."""
    steps: int = Field(40, ge=1)
    """Projected gradient steps in all; the released code does as many at each of 50 timesteps and draws after each."""
    batch_size: int = Field(4, ge=1)
    """Noised copies of the picture in each try's step, at noise levels spread over the schedule."""
    learning_rate: float = Field(0.2, gt=0)
    """Length of a step: how much of a mixture the word with the largest gradient gains or loses before the projection."""
    num_candidates: int = Field(24, ge=1)
    """Sequences of real words drawn from a try's mixtures and rated; the first takes each place's largest share."""
    num_exchanges: int = Field(8, ge=0)
    """Words tried in each place of the best sequence, the others as they are: those the gradient there promises most of."""
    check_size: int = Field(8, ge=1)
    """Noised copies of the picture by which they are rated, the same for all of a try."""
    num_draws: int = Field(8, ge=1)
    """Best candidates drawn from for each try, which succeeds if the concept is seen in any of the pictures."""
    rows_at_once: int | None = Field(None, ge=1)
    """Rows whose activations are held at once; affects memory and speed only. None: all; 4 for full-size models."""


def run(side: Side, scene: Scene, config: Config, bar: Bar) -> Outcome:
    """The share of tries in which one of the found prompts draws the concept."""
    family = side.family
    latents = family.encode_images(scene.references[: config.num_tries])
    prompts = [
        unnamed(prompt, scene.concept, k) if side.role == "base" else prompt.text
        for k, prompt in enumerate(scene.reference_prompts[: config.num_tries])
    ]
    found: list[list[str]] = []
    gains: list[float] = []
    words = family.whole_words()
    tables = [table[list(words)] for table in family.word_tables()]
    mixtures = attack(family, latents, prompts, tables, config, scene.seed + OFFSET, bar)
    for k, (mixture, aim, prompt) in enumerate(zip(mixtures, latents, prompts, strict=True)):
        own = scene.seed + OFFSET + k
        texts = candidates(mixture, list(words.values()), prompt, config.num_candidates, own)
        losses = rate(family, aim, [prompt, *texts], config.check_size, own)
        best = texts[int(losses[1:].argmin())]
        more = [
            text
            for text in exchanges(family, aim, best, prompt, list(words.values()), tables, config, own)
            if text not in texts
        ]
        losses = torch.cat([losses, rate(family, aim, more, config.check_size, own)])
        texts = [*texts, *more]
        found.append([texts[good] for good in losses[1:].argsort()[: config.num_draws].tolist()])
        gains.append(float(losses[0] - losses[1:].min()))
        bar.advance(ratings(config))
    asked = [texts[min(k, len(texts) - 1)] for k in range(config.num_draws) for texts in found]
    pictures = draw(side, scene, asked, range(scene.seed + OFFSET, scene.seed + OFFSET + len(asked)), bar)
    return outcome(pictures, scene.sees(pictures), asked, len(found), sum(gains) / len(gains))


def outcome(pictures: Tensor, seen: list[bool], asked: list[str], num_tries: int, gain: float) -> Outcome:
    """One picture a try: its first in which the concept is seen, or its best candidate's."""
    shown = []
    for k in range(num_tries):
        mine = range(k, len(seen), num_tries)
        shown.append(next((row for row in mine if seen[row]), k))
    hits = tuple(seen[row] for row in shown)
    figures = {"loss gained by the words": gain}
    return Outcome(Share(sum(hits), len(hits)), pictures[shown], hits, tuple(asked[row] for row in shown), figures)


def attack(
    family: Family, latents: Tensor, prompts: list[str], tables: list[Tensor], config: Config, seed: int, bar: Bar
) -> Tensor:
    """Each try's mixtures (T, K, words) after projected gradient descent on its picture's denoising loss.

    `tables`: the words' vectors (words, D), for each text encoder.
    """
    generator = torch.Generator().manual_seed(seed)
    mixtures = torch.full((len(prompts), config.num_words, len(tables[0])), 1 / len(tables[0]))
    for _ in range(config.steps):
        gradient = slope(family, latents, prompts, tables, mixtures, config.batch_size, generator, config.rows_at_once)
        gradient = gradient - gradient.mean(2, keepdim=True)  # the simplex has no direction along which all shares grow
        step = gradient / gradient.abs().amax((1, 2), keepdim=True).clamp(min=1e-20)
        mixtures = simplex(mixtures - config.learning_rate * step)
        bar.advance(len(prompts))
    return mixtures


def slope(
    family: Family,
    latents: Tensor,
    prompts: list[str],
    tables: list[Tensor],
    mixtures: Tensor,
    num: int,
    generator: torch.Generator,
    rows_at_once: int | None = None,
) -> Tensor:
    """The gradient (T, K, words) of each picture's loss by its mixtures, on `num` noised copies of the picture.

    Activations are held of `rows_at_once` copies at a time; None: of all.
    """
    mixtures = mixtures.detach().requires_grad_(True)
    sentences = ["{} " + prompt.replace("{", "").replace("}", "") for prompt in prompts]
    many = latents.repeat_interleave(num, 0)
    timesteps = torch.cat([levels(family, num, generator) for _ in prompts])
    conditioning = family.encode_slots(sentences, [mixtures @ table for table in tables])
    conditioning = {key: values.repeat_interleave(num, 0) for key, values in conditioning.items()}
    noise = noise_for(many, generator)
    return word_gradients(family, many, conditioning, timesteps, noise, [mixtures], rows_at_once)[0]


def exchanges(
    family: Family,
    latents: Tensor,
    text: str,
    prompt: str,
    words: list[str],
    tables: list[Tensor],
    config: Config,
    seed: int,
) -> list[str]:
    """The text (num_words words, then the prompt) with one word exchanged; place by place, the most promising first."""
    if not config.num_exchanges:
        return []
    chosen = text.split()[: config.num_words]
    places = torch.tensor([words.index(word) for word in chosen])
    mixture = torch.nn.functional.one_hot(places, len(words)).float()[None]
    generator = torch.Generator().manual_seed(seed)
    gradient = slope(family, latents[None], [prompt], tables, mixture, config.check_size, generator, config.rows_at_once)[0]
    gradient[torch.arange(len(places)), places] = torch.inf  # the word that is there is no exchange
    found = []
    for place, order in enumerate(gradient.argsort(1)[:, : config.num_exchanges].tolist()):
        found += [" ".join([*chosen[:place], words[word], *chosen[place + 1 :], prompt]) for word in order]
    return found


def ratings(config: Config) -> int:
    """How many texts are rated in a try, at most."""
    return config.num_candidates + config.num_words * config.num_exchanges


def simplex(points: Tensor) -> Tensor:
    """The nearest point of the probability simplex in the last dimension (Held, Wolfe and Crowder 1974)."""
    ordered = points.sort(-1, descending=True).values
    excess = ordered.cumsum(-1) - 1
    counts = torch.arange(1, points.shape[-1] + 1)
    num = (ordered * counts > excess).sum(-1, keepdim=True)
    return (points - excess.gather(-1, num - 1) / num).clamp(min=0)


def candidates(mixture: Tensor, words: list[str], prompt: str, num: int, seed: int) -> list[str]:
    """The prompt with real words before it: each place's largest share (K, words), then different draws from the mixtures."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(mixture, 4 * num, replacement=True, generator=generator).T.tolist()
    rows = [mixture.argmax(1).tolist(), *drawn]
    texts = [" ".join([*(words[k] for k in row), prompt]) for row in rows]
    return list(dict.fromkeys(texts))[:num]


@torch.no_grad()
def rate(family: Family, latents: Tensor, texts: list[str], check_size: int, seed: int) -> Tensor:
    """Each text's denoising loss (N,) on the picture (C, h, w), all on the same noise."""
    generator = torch.Generator().manual_seed(seed)
    many = latents.expand(check_size, *latents.shape)
    timesteps, noise = levels(family, check_size, generator), noise_for(many, generator)
    losses = []
    for row in range(len(texts)):
        conditioning = family.encode_prompts([texts[row]])
        conditioning = {key: values.expand(check_size, *values.shape[1:]) for key, values in conditioning.items()}
        losses.append(float(word_losses(family, many, conditioning, timesteps, noise).mean()))
    return torch.tensor(losses)


PROBE = Probe(
    line="words put before the prompt that make the model denoise a picture of the concept best",
    paper="Zhang et al., ECCV 2024, arXiv 2310.11868",
    config=Config,
    quick={
        "num_tries": 4,
        "steps": 12,
        "batch_size": 3,
        "num_candidates": 8,
        "num_exchanges": 0,
        "check_size": 4,
        "num_draws": 4,
    },
    full_size={"rows_at_once": ROWS_AT_ONCE},
    run=run,
    total=lambda config, scene: (
        min(config.num_tries, len(scene.references)) * (config.steps + ratings(config) + config.num_draws)
    ),
)
