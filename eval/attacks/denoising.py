"""What the white-box probes share: the model's own denoising loss, drawing for a scene, sentences with a slot for a word."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from erase.concepts import Concept, Prompt
from eval.attacks.base import Bar, Scene, Side
from eval.attacks.lean import checkpointed, parts
from pipelines.family import Conditioning, Family

OBJECT_SENTENCES = ("a {}", "an image of a {}", "a picture of a {}", "a photo of a {}", "{}")
MOST_WEIGHT = 10.0  # of a loss at high noise
STYLE_SENTENCES = ("{} style", "an image in {} style", "a {} picture")


def levels(family: Family, num: int, generator: torch.Generator) -> Tensor:
    """Timesteps (num,) uniform over the schedule, one drawn from each of `num` equal slices, in a random order."""
    slices = torch.randperm(num, generator=generator) + torch.rand(num, generator=generator)
    return (slices / num * family.num_train_timesteps).long().clamp(max=family.num_train_timesteps - 1)


def noise_for(latents: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian noise of the latents' shape."""
    return torch.randn(latents.shape, generator=generator)


def denoising_losses(family: Family, latents: Tensor, conditioning: Conditioning, timesteps: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error (N,) of the model's prediction for latents (N, C, h, w) under that noise at those timesteps (N,)."""
    model_pred = family.predict(family.add_noise(latents, noise, timesteps), timesteps, conditioning).float()
    target = family.target(latents, noise, timesteps).to(model_pred.device)
    return (model_pred - target).square().flatten(1).mean(1)


def word_losses(family: Family, latents: Tensor, conditioning: Conditioning, timesteps: Tensor, noise: Tensor) -> Tensor:
    """The losses (N,) that a search for words goes by: errors of the velocity that is predicted, at most 10 times the noise's.

    What a text says shows at high noise, where an error of the noise is small: alpha_bar times that of the velocity (Salimans &
    Ho, ICLR 2022).
    """
    one = torch.ones(len(timesteps), 1, 1, 1)
    signal = family.add_noise(one, torch.zeros_like(one), timesteps).flatten()
    of_noise = family.target(torch.zeros_like(one), one, timesteps).flatten()
    losses = denoising_losses(family, latents, conditioning, timesteps, noise)
    weight = (of_noise / signal).nan_to_num(nan=1.0).square()  # without any signal a velocity is 0 / 0: itself
    return losses * weight.clamp(max=MOST_WEIGHT).to(losses.device)


def word_gradients(
    family: Family,
    latents: Tensor,
    conditioning: Conditioning,
    timesteps: Tensor,
    noise: Tensor,
    words: list[Tensor],
    rows_at_once: int | None,
    weight: float = 1.0,
) -> tuple[Tensor, ...]:
    """The gradient of the rows' word losses, summed and times the weight, by each of the words the conditioning is made of.

    Activations are held of `rows_at_once` rows at a time (None: of all); the sum is the same up to rounding. No gradient is
    left on the model.
    """
    heard = {key: values.detach().requires_grad_(True) for key, values in conditioning.items() if values.requires_grad}
    sums: list[Tensor] = []
    with checkpointed(family):
        for part in parts(len(latents), rows_at_once):
            asked = {key: heard.get(key, values)[part] for key, values in conditioning.items()}
            losses = word_losses(family, latents[part], asked, timesteps[part], noise[part])
            found = torch.autograd.grad(weight * losses.sum(), list(heard.values()))
            sums = [before + more for before, more in zip(sums, found, strict=True)] if sums else list(found)
    return torch.autograd.grad([conditioning[key] for key in heard], words, sums)


def draw(side: Side, scene: Scene, prompts: list[str] | Conditioning, seeds: Sequence[int], bar: Bar) -> Tensor:
    """Pictures (N, 3, H, W) in [-1, 1] with the scene's sampler settings; picture k from the noise of seeds[k]."""
    latents = side.family.generate(
        prompts,
        list(seeds),
        num_inference_steps=scene.num_inference_steps,
        guidance_scale=scene.guidance_scale,
        batch_size=scene.batch_size,
        progress=bar.advance,
    )
    return side.family.decode_latents(latents)


def slot_name(concept: Concept) -> str:
    """The word or words that stand for the concept in a prompt; of a pair, its object's."""
    return concept.object or concept.style or concept.name


def with_slot(prompt: Prompt, concept: Concept, turn: int = 0) -> str:
    """The prompt with `{}` where it names the concept; one of the common sentences, in turn, where it does not."""
    name = re.escape(slot_name(concept))
    text, found = re.subn(rf"\b{name}(s|es)?\b", "\0", prompt.text, count=1, flags=re.IGNORECASE)
    if found:
        return text.replace("{", "").replace("}", "").replace("\0", "{}")
    sentences = STYLE_SENTENCES if concept.kind == "style" else OBJECT_SENTENCES
    return sentences[turn % len(sentences)]


def unnamed(prompt: Prompt, concept: Concept, turn: int = 0) -> str:
    """What is left of the prompt where its name of the concept is taken out."""
    return " ".join(with_slot(prompt, concept, turn).format("").split())
