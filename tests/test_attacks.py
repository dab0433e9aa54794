"""The white-box probes: theorems and hand values on tiny models and toy denoisers; on the embedded model both ways (slow)."""

import contextlib
import copy
import math
import sys
from collections import Counter as Tally
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor

from benchmarks.packing import unpack
from benchmarks.retrained import PACKED
from erase.cli import main
from erase.concepts import Concept, Prompt, evaluation_prompts, forget_prompts, retain_prompts
from erase.config import RunConfig
from erase.recipes import resolve
from eval.attacks import PROBES as ALL
from eval.attacks import adversarial_prompt, benign, concept_inversion, relearning, text_free, traces
from eval.attacks.base import Outcome, Probe, Scene, Side
from eval.attacks.denoising import denoising_losses, draw, levels, unnamed, with_slot, word_losses
from eval.attacks.finetuning import borrowed, finetune
from eval.audit_gate import judge
from eval.audit_limits import Limits
from eval.audit_report import figures_of
from eval.audit_scene import scattered
from eval.detectors import EmojiJudge
from pipelines.load import EMOJI_VOCABULARY, load
from pipelines.sdxl import StableDiffusionXL
from pipelines.stable_diffusion import StableDiffusion

DOG = Concept("dog", "object", object="dog")
SMALL: dict[str, dict[str, Any]] = {
    "adversarial_prompt": {"num_tries": 2, "steps": 2, "batch_size": 2, "num_candidates": 3, "check_size": 2, "num_draws": 2},
    "concept_inversion": {"steps": 2, "starts": 2, "batch_size": 2, "check_size": 3, "num_pictures": 2},
    "text_free": {"num_tries": 2, "steps": 2, "corrections": 1, "fresh": (0.5,)},
    "relearning": {"num_references": 2, "max_steps": 2, "check_every": 2, "batch_size": 2, "num_pictures": 2},
    "benign": {"steps": 2, "batch_size": 2, "num_pictures": 2, "num_others": 2},
}
PROBES: dict[str, Probe] = {
    "adversarial_prompt": adversarial_prompt.PROBE,
    "concept_inversion": concept_inversion.PROBE,
    "text_free": text_free.PROBE,
    "relearning": relearning.PROBE,
    "benign": benign.PROBE,
}


class Counter:
    """A progress bar that counts."""

    def __init__(self) -> None:
        self.num = 0

    def advance(self, num: int = 1, **figures: float) -> None:
        self.num += num


def tiny_scene(sees: Callable[[Tensor], list[bool]] | None = None) -> Scene:
    generator = torch.Generator().manual_seed(3)
    asked = (Prompt("a dog", "dog"), Prompt("a dog in neon style", "dog", "neon"))
    others = (Prompt("a cat", "cat"), Prompt("a car, 3d style", "car", "3d"))
    return Scene(
        concept=DOG,
        sees=sees or (lambda pictures: [bool(picture.mean() > 0) for picture in pictures]),
        references=torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1,
        reference_prompts=asked,
        others=torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1,
        other_prompts=others,
        prompts=asked,
        seed=5,
        num_inference_steps=2,
        guidance_scale=3.0,
        batch_size=4,
    )


def run(name: str, family: StableDiffusion, scene: Scene, bar: Counter | None = None) -> Outcome:
    probe = PROBES[name]
    return probe.run(Side("model", family, "0" * 64), scene, probe.config(**SMALL[name]), bar or Counter())


@pytest.fixture(params=["tiny_pipeline", "tiny_v_pipeline", "tiny_xl_pipeline"])
def family(request: pytest.FixtureRequest) -> StableDiffusion:
    """Each tiny family with a UNet of its own."""
    pipeline = request.getfixturevalue(request.param)
    parts = pipeline.components | {"unet": copy.deepcopy(pipeline.unet)}
    if isinstance(pipeline, StableDiffusionXLPipeline):
        return StableDiffusionXL(StableDiffusionXLPipeline(**parts, add_watermarker=False), EMOJI_VOCABULARY)
    return StableDiffusion(StableDiffusionPipeline(**parts, requires_safety_checker=False), EMOJI_VOCABULARY)


def state(family: StableDiffusion) -> list[Any]:
    """Everything that a probe must leave as it was: weights' bits, flags, gradients, modes, hooks, the global generator."""
    found: list[Any] = [torch.get_rng_state()]
    for name in ("unet", *family.encoders):
        module = getattr(family.pipeline, name)
        found += [values.detach().clone() for values in module.state_dict().values()]
        found += [(values.requires_grad, values.grad is None) for values in module.parameters()]
        found += [(part.training, len(part._forward_hooks)) for part in module.modules()]
    return found


def same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("name", PROBES)
def test_every_probe_leaves_every_family_bit_for_bit_and_answers_alike_twice(name: str, family: StableDiffusion) -> None:
    family.pipeline.unet.down_blocks[0].train()
    next(family.pipeline.unet.parameters()).requires_grad_(True)
    family.encode_prompts(["a dog"])  # the library hangs its own hooks on the second text encoder at its first use
    before, scene, bar = state(family), tiny_scene(lambda pictures: [False] * len(pictures)), Counter()
    outcome = run(name, family, scene, bar)
    assert same(before, state(family))
    assert len(outcome.pictures) == len(outcome.seen) == outcome.found.n
    assert outcome.pictures.shape[1:] == (3, 16, 16) and outcome.found.count == 0
    assert bar.num == PROBES[name].total(PROBES[name].config(**SMALL[name]), scene)
    again = run(name, family, scene)
    assert torch.equal(outcome.pictures, again.pictures) and outcome.captions == again.captions
    assert outcome.figures == again.figures


@pytest.mark.parametrize("name", PROBES)
def test_an_error_in_the_middle_leaves_the_model_as_it_was(name: str, new_family: Callable[[], StableDiffusion]) -> None:
    """The detector fails at its second look (the first of those that look once), when the weights have moved."""
    looks = 0

    def sees(pictures: Tensor) -> list[bool]:
        nonlocal looks
        looks += 1
        if looks > 1 or name not in ("relearning", "text_free"):
            raise RuntimeError("the detector broke")
        return [False] * len(pictures)

    family = new_family()
    before = state(family)
    with pytest.raises(RuntimeError, match="detector broke"):
        run(name, family, tiny_scene(sees))
    assert same(before, state(family))


@pytest.mark.parametrize("name", PROBES)
def test_quick_is_a_valid_config_and_less_work(name: str) -> None:
    probe, scene = PROBES[name], replace(tiny_scene(), references=torch.zeros(16, 3, 16, 16))
    quick = probe.config(**probe.quick)
    assert probe.total(quick, scene) < probe.total(probe.config(), scene)
    assert all(field.description for field in probe.config.model_fields.values())


def test_the_weights_move_while_they_are_borrowed(tiny_family: StableDiffusion) -> None:
    weights = list(tiny_family.denoiser.parameters())
    before = [values.detach().clone() for values in weights]
    conditioning = tiny_family.encode_prompts(["a dog"] * 3)
    with borrowed(tiny_family):
        steps = finetune(tiny_family, torch.randn(3, 4, 8, 8), conditioning, 1e-3, 2, 0)
        assert [next(steps), next(steps)] == [1, 2]
        assert all(not torch.equal(a, b) for a, b in zip(before, weights, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, weights, strict=True))


@pytest.mark.parametrize(
    ("point", "nearest"),
    [([0.3, 0.7], [0.3, 0.7]), ([3.0, 0.0], [1.0, 0.0]), ([0.6, 0.6, -1.0], [0.5, 0.5, 0.0]), ([1.0, 0.5], [0.75, 0.25])],
)
def test_the_projection_by_hand(point: list[float], nearest: list[float]) -> None:
    torch.testing.assert_close(adversarial_prompt.simplex(torch.tensor(point)), torch.tensor(nearest))


def test_the_projection_is_onto_the_simplex_and_its_nearest_point() -> None:
    """KKT: sum 1, none negative, and all that are above 0 were lowered by the same amount, the others by at least as much."""
    points = torch.randn(20, 7, generator=torch.Generator().manual_seed(0)) * 2
    found = adversarial_prompt.simplex(points)
    torch.testing.assert_close(found.sum(1), torch.ones(20))
    assert bool((found >= 0).all())
    for point, onto in zip(points, found, strict=True):
        lowered = (point - onto)[onto > 0]
        torch.testing.assert_close(lowered, lowered[:1].expand_as(lowered))
        assert bool((point[onto == 0] <= lowered.max() + 1e-6).all())


def test_found_prompts_are_real_words_before_the_prompt(tiny_family: StableDiffusion) -> None:
    words = list(tiny_family.whole_words().values())
    mixture = torch.rand(3, len(words), generator=torch.Generator().manual_seed(0))
    texts = adversarial_prompt.candidates(mixture / mixture.sum(1, keepdim=True), words, "a dog", 5, 0)
    assert len(set(texts)) == 5
    assert texts[0] == " ".join(words[k] for k in mixture.argmax(1)) + " a dog"
    tokenizer = tiny_family.pipeline.tokenizer
    numbers = {text: token for token, text in tiny_family.whole_words().items()}
    for text in texts:
        chosen = [numbers[word] for word in text.split()[:3]]
        assert tokenizer(text, add_special_tokens=False).input_ids[:3] == chosen


def test_the_mixtures_find_the_words_that_a_search_of_all_finds(tiny_family: StableDiffusion) -> None:
    """One place, forty words, a quarter of them tried: the attack's best is among the best tenth of all."""
    family, words = tiny_family, dict(list(tiny_family.whole_words().items())[:160:4])
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    config = adversarial_prompt.Config(num_words=1, steps=12, batch_size=4)
    tables = [table[list(words)] for table in family.word_tables()]
    mixtures = adversarial_prompt.attack(family, latents, ["a dog"], tables, config, 0, Counter())
    assert mixtures.shape == (1, 1, len(words))
    texts = adversarial_prompt.candidates(mixtures[0], list(words.values()), "a dog", 10, 0)
    found = adversarial_prompt.rate(family, latents[0], texts, 8, 0).min()
    every = adversarial_prompt.rate(family, latents[0], [f"{word} a dog" for word in words.values()], 8, 0)
    assert float((every < found - 1e-6).float().mean()) < 0.1


def test_exchanged_words_are_one_at_a_time_and_better_than_others(tiny_family: StableDiffusion) -> None:
    """Five of forty words a place, picked by gradient: their losses are lower than those of all exchanges of that place."""
    family, words = tiny_family, dict(list(tiny_family.whole_words().items())[:160:4])
    latents = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(1))
    tables = [table[list(words)] for table in family.word_tables()]
    names = list(words.values())
    config = adversarial_prompt.Config(num_words=2, num_exchanges=5, check_size=8)
    text = f"{names[7]} {names[21]} a dog"
    found = adversarial_prompt.exchanges(family, latents, text, "a dog", names, tables, config, 0)
    assert len(found) == len(set(found)) == 10
    every = [[f"{name} {names[21]} a dog" for name in names], [f"{names[7]} {name} a dog" for name in names]]
    for place, all_texts in enumerate(every):
        mine = found[5 * place : 5 * place + 5]
        assert text not in mine and set(mine) <= set(all_texts)
        losses = adversarial_prompt.rate(family, latents, all_texts, 8, 0)
        chosen = adversarial_prompt.rate(family, latents, mine, 8, 0)
        assert float(chosen.mean()) < float(losses.mean()) and float(chosen.min()) <= float(losses.sort().values[4])


def test_without_exchanges_none_are_rated(tiny_family: StableDiffusion) -> None:
    config = adversarial_prompt.Config(num_exchanges=0)
    latents = torch.zeros(4, 8, 8)
    none = adversarial_prompt.exchanges(tiny_family, latents, "a a a dog", "dog", ["a"], [], config, 0)
    assert none == [] and len(adversarial_prompt.rate(tiny_family, latents, none, 8, 0)) == 0


def test_a_try_shows_its_first_picture_that_is_seen() -> None:
    """Two tries with two pictures each: the second try is seen in its second picture only."""
    pictures = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    outcome = adversarial_prompt.outcome(pictures, [False, False, False, True], ["a", "b", "c", "d"], 2, 0.1)
    assert outcome.captions == ("a", "d") and outcome.seen == (False, True)
    assert (outcome.found.count, outcome.found.n) == (1, 2) and float(outcome.pictures[1, 0, 0, 0]) == 3


def test_the_learned_word_denoises_better_than_the_one_it_began_with(family: StableDiffusion) -> None:
    scene = tiny_scene()
    probe = concept_inversion.PROBE
    config = probe.config(steps=10, batch_size=4, check_size=8, num_pictures=1)
    outcome = probe.run(Side("model", family, ""), scene, config, Counter())
    assert outcome.figures["loss after"] < outcome.figures["loss before"]
    assert outcome.captions == ("a *",)


def test_the_first_vector_is_the_names_own(tiny_family: StableDiffusion) -> None:
    numbers = {text: token for token, text in tiny_family.whole_words().items()}
    table = tiny_family.word_tables()[0]
    first = concept_inversion.first_vectors(tiny_family, tiny_scene(), 3, named=True)[0]
    assert first.shape == (3, 16) and torch.equal(first[0], table[numbers["dog"]])
    two_words = replace(tiny_scene(), concept=Concept("gas pump", "object", object="gas pump"))
    mean = table[[numbers["gas"], numbers["pump"]]].mean(0)
    torch.testing.assert_close(concept_inversion.first_vectors(tiny_family, two_words, 1, named=True)[0][0], mean)


def test_without_the_name_no_start_is_a_word_of_it(tiny_family: StableDiffusion) -> None:
    """As many starts as words, drawn with repetition: the name's own would be among 999 of 1,000 such draws."""
    numbers = {text: token for token, text in tiny_family.whole_words().items()}
    table = tiny_family.word_tables()[0]
    first = concept_inversion.first_vectors(tiny_family, tiny_scene(), 7 * len(numbers), named=False)[0]
    assert len(first.unique(dim=0)) > len(numbers) // 2
    assert not (first == table[numbers["dog"]]).all(1).any()
    named = concept_inversion.first_vectors(tiny_family, tiny_scene(), 7 * len(numbers), named=True)[0]
    assert (named == table[numbers["dog"]]).all(1).tolist() == [True] + [False] * (len(named) - 1)


def test_the_word_of_the_smallest_loss_after_learning_is_drawn_with(
    tiny_family: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three starts with losses 3, 1, 2 on fresh noise: the second learned word, in each sentence."""
    learned = [torch.randn(3, 16, generator=torch.Generator().manual_seed(9))]
    losses = iter((torch.tensor([5.0, 6.0, 4.0]), torch.tensor([3.0, 1.0, 2.0])))
    given: list[Any] = []
    monkeypatch.setattr(concept_inversion, "learn", lambda *_: learned)
    monkeypatch.setattr(concept_inversion, "check", lambda *_: next(losses))
    monkeypatch.setattr(concept_inversion, "draw", lambda *more: given.append(more[2]) or torch.zeros(2, 3, 16, 16))
    config = concept_inversion.Config(**SMALL["concept_inversion"] | {"starts": 3})
    outcome = concept_inversion.run(Side("model", tiny_family, ""), tiny_scene(), config, Counter())
    with torch.no_grad():
        expected = tiny_family.encode_slots(["a {}", "a {} in neon style"], [learned[0][1].expand(2, 1, -1)])
    assert torch.equal(given[0]["prompt_embeds"], expected["prompt_embeds"])
    assert outcome.figures == {"loss before": 6.0, "loss after": 1.0}


@pytest.mark.parametrize(("role", "asked"), [("base", ["a", "a in neon style"]), ("model", ["a dog", "a dog in neon style"])])
def test_the_words_are_put_before_the_prompt_on_the_base_before_what_is_left_of_it(
    role: Any, asked: list[str], tiny_family: StableDiffusion
) -> None:
    config = adversarial_prompt.Config(**SMALL["adversarial_prompt"])
    outcome = adversarial_prompt.run(Side(role, tiny_family, ""), tiny_scene(), config, Counter())
    assert [caption.split(" ", config.num_words)[-1] for caption in outcome.captions] == asked


def test_on_the_base_the_word_is_learned_from_other_words_than_the_name(
    tiny_family: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[bool] = []
    first_vectors = concept_inversion.first_vectors

    def spy(*arguments: Any, named: bool) -> list[Tensor]:
        given.append(named)
        return first_vectors(*arguments, named=named)

    monkeypatch.setattr(concept_inversion, "first_vectors", spy)
    config = concept_inversion.Config(**SMALL["concept_inversion"])
    for role in ("base", "model", "retrain"):
        concept_inversion.run(Side(role, tiny_family, ""), tiny_scene(), config, Counter())  # type: ignore[arg-type]
    assert given == [False, True, True]


@pytest.mark.parametrize(
    ("concept", "prompt", "slotted"),
    [
        (DOG, Prompt("A photo of two Dogs"), "A photo of two {}"),
        (DOG, Prompt("a {weird} dog"), "a weird {}"),
        (DOG, Prompt("a hotdog"), "a {}"),
        (Concept("neon", "style", style="neon"), Prompt("a cat, neon style"), "a cat, {} style"),
        (Concept("nudity", "other"), Prompt("a person"), "a {}"),
    ],
)
def test_the_slot_is_where_the_concept_is_named(concept: Concept, prompt: Prompt, slotted: str) -> None:
    assert with_slot(prompt, concept) == slotted
    assert unnamed(prompt, concept) == " ".join(slotted.replace("{}", "").split())


def test_words_are_sought_by_the_error_of_the_velocity(family: StableDiffusion) -> None:
    """A picture of zeros under a noise of ones, and a model that predicts 0. Of velocity (here sqrt(a)) it is off by a, of
    noise by 1, which is 1 / a in the velocity that follows from it, but at most 10."""
    toy: Any = Linear(family, 0.0)
    timesteps = torch.tensor([0, 300, 999])
    signal = family.add_noise(torch.ones(3, 1, 1, 1), torch.zeros(3, 1, 1, 1), timesteps).flatten()
    noise = torch.ones(3, 4, 8, 8)
    found = word_losses(toy, torch.zeros_like(noise), {}, timesteps, noise)
    of_noise = family.target(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1), timesteps[1:2]).item() == 1
    assert float(signal[2] ** 2) < 0.1 < float(signal[1] ** 2)
    torch.testing.assert_close(found, (1 / signal.square()).clamp(max=10) if of_noise else signal.square())


def test_noise_levels_are_spread_over_the_schedule(tiny_family: StableDiffusion) -> None:
    timesteps = levels(tiny_family, 10, torch.Generator().manual_seed(0))
    assert sorted((timesteps // 100).tolist()) == list(range(10))


class Linear:
    """A family whose denoiser predicts `gain` times what it sees."""

    def __init__(self, family: StableDiffusion, gain: float) -> None:
        self.gain, self.num_train_timesteps = gain, family.num_train_timesteps
        self.add_noise, self.target = family.add_noise, family.target

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: object) -> Tensor:
        return self.gain * noisy_latents


@pytest.mark.parametrize("gain", [0.0, 0.2])
def test_inversion_then_denoising_gives_the_picture_back(family: StableDiffusion, gain: float) -> None:
    toy: Any = Linear(family, gain)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    times = text_free.schedule(toy, 10)
    assert times[-1] == 999 and len(times) == 10

    def error(corrections: int) -> float:
        noise = text_free.invert(toy, latents, times, {}, corrections)
        return float((text_free.denoise(toy, noise, times, {}) - latents).abs().max())

    assert error(40) < 1e-3
    assert gain == 0 or error(0) > 10 * error(40)


def test_picture_and_noise_are_those_of_a_perfect_denoiser(family: StableDiffusion) -> None:
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 2, 4, 8, 8, generator=generator)
    for timestep in (20, 500, 999):
        when = torch.full((2,), timestep)
        perfect: Any = Linear(family, 1)
        perfect.predict = lambda *_, when=when: family.target(latents, noise, when)
        noisy_latents = family.add_noise(latents, noise, when)
        found = text_free.predicted(perfect, noisy_latents, timestep, {})
        torch.testing.assert_close(found, (latents, noise), rtol=1e-3, atol=1e-3)


def test_words_are_sought_where_no_signal_is_left_too(zero_snr_family: StableDiffusion) -> None:
    """Of the last timestep the velocity is the picture's, negative: a prediction of 0 is off by 1 from a picture of ones."""
    ones = torch.ones(1, 4, 8, 8)
    toy: Any = Linear(zero_snr_family, 0.0)
    assert word_losses(toy, ones, {}, torch.tensor([999]), ones).tolist() == [1.0]


@pytest.fixture
def zero_snr_family(tiny_v_pipeline: StableDiffusionPipeline) -> StableDiffusion:
    """A v-prediction model in whose last latents nothing of the picture is left."""
    scheduler = type(tiny_v_pipeline.scheduler).from_config(tiny_v_pipeline.scheduler.config, rescale_betas_zero_snr=True)
    parts = tiny_v_pipeline.components | {"scheduler": scheduler}
    return StableDiffusion(StableDiffusionPipeline(**parts, requires_safety_checker=False), EMOJI_VOCABULARY)


def test_from_noise_alone_the_way_leads_to_the_picture_that_the_velocity_is_of(zero_snr_family: StableDiffusion) -> None:
    """By hand, at signal 0 and noise 1: velocity = 0 x noise - 1 x picture, so that 0.5 of the latents is a picture of -0.5."""
    toy: Any = Linear(zero_snr_family, 0.5)
    assert text_free.rates(toy, 999) == (0.0, 1.0)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(text_free.predicted(toy, latents, 999, {}), (-0.5 * latents, latents))
    torch.testing.assert_close(text_free.denoise(toy, latents, [999], {}), -0.5 * latents)


@pytest.mark.parametrize("gain", [0.0, 0.2])
def test_the_way_there_and_back_is_one_without_signal_at_its_end(gain: float, zero_snr_family: StableDiffusion) -> None:
    toy: Any = Linear(zero_snr_family, gain)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    times = text_free.schedule(toy, 10)
    noise = text_free.invert(toy, latents, times, {}, 40)
    torch.testing.assert_close(text_free.denoise(toy, noise, times, {}), latents, rtol=1e-3, atol=1e-3)
    outcome = run("text_free", zero_snr_family, tiny_scene())
    assert all(math.isfinite(value) for value in outcome.figures.values()) and outcome.pictures.isfinite().all()
    assert text_free.invert(toy, latents, [999], {}, 1).isfinite().all(), "one step: from the picture to noise alone"


def test_the_shares_from_fresh_noise_stand_on_the_page_and_in_the_record(tiny_family: StableDiffusion) -> None:
    """Exact noise gives every model's pictures back: what tells something is beside it, by name, on each side."""
    outcome = run("text_free", tiny_family, tiny_scene())
    line = judge("text_free", {"base": outcome, "model": outcome, "retrain": outcome}, Limits(), False, 0.0)
    assert all(line.parts[side]["50% fresh noise"]["n"] == 2 for side in ("base", "model", "retrain"))
    rows = {row["name"]: row for row in figures_of(line)}
    assert {"base", "model", "retrain"} <= rows["50% fresh noise"].keys()


@pytest.mark.parametrize(("back_at", "steps", "back"), [(0, 0, 1), (1, 1, 1), (5, 5, 1), (9, 5, 0)])
def test_relearning_counts_the_steps_until_it_is_back(
    new_family: Callable[[], StableDiffusion], back_at: int, steps: int, back: int
) -> None:
    """Looks are at 0, 1, 2, 3, 4 and, the last, 5 steps; the detector sees the concept from its look number `back_at` on."""
    looks = 0

    def sees(pictures: Tensor) -> list[bool]:
        nonlocal looks
        looks += 1
        return [looks > back_at and k % 2 == 0 for k in range(len(pictures))]

    config = relearning.Config(max_steps=5, check_every=2, batch_size=2, num_pictures=4, back=0.5)
    bar = Counter()
    outcome = relearning.run(Side("model", new_family(), ""), tiny_scene(sees), config, bar)
    assert bar.num == relearning.PROBE.total(config, tiny_scene())
    assert (outcome.figures["steps"], outcome.figures["back"]) == (steps, back)
    assert outcome.found.value == (0.5 if back else 0.0)
    names = [name for name in outcome.figures if name.startswith("seen after")]
    assert names == [f"seen after {k}" for k in (0, 1, 2, 3, 4, 5) if k <= steps]
    assert relearning.looks(relearning.Config(max_steps=40)) == [4, 8, 12, 16, 24, 32, 40]


def test_relearning_learns_the_concepts_own_pictures_by_their_own_prompts(
    tiny_family: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of three references, in order, at the rate that is set; what is drawn later is drawn by the tuned model."""
    scene, learned, looked, finetuned = tiny_scene(), [], [], relearning.finetune
    pictures = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(4)) * 2 - 1
    prompts = (*scene.reference_prompts[::-1], Prompt("a dog on a bed", "dog"))

    def spy(family: Any, latents: Tensor, conditioning: Any, *more: Any) -> Any:
        learned.append((latents, conditioning["prompt_embeds"], more[:2]))
        return finetuned(family, latents, conditioning, *more)

    def sees(drawn: Tensor) -> list[bool]:
        looked.append(drawn.clone())
        return [False] * len(drawn)

    monkeypatch.setattr(relearning, "finetune", spy)
    config = relearning.Config(num_references=2, max_steps=2, check_every=2, batch_size=2, num_pictures=2, learning_rate=3e-3)
    scene = replace(scene, sees=sees, references=pictures, reference_prompts=prompts)
    relearning.run(Side("model", tiny_family, ""), scene, config, Counter())
    ((latents, embeds, settings),) = learned
    assert torch.equal(latents, tiny_family.encode_images(pictures[:2])) and settings == (3e-3, 2)
    assert torch.equal(embeds, tiny_family.encode_prompts(["a dog in neon style", "a dog"])["prompt_embeds"])
    assert len(looked) == 3 and all((looked[0] - later).abs().max() > 1e-3 for later in looked[1:])


def test_fine_tuning_learns_its_pictures(tiny_family: StableDiffusion) -> None:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    conditioning = tiny_family.encode_prompts(["a dog", "a cat"])
    noise, timesteps = torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([300, 700])

    @torch.no_grad()
    def loss() -> float:
        return float(denoising_losses(tiny_family, latents, conditioning, timesteps, noise).mean())

    before = loss()
    with borrowed(tiny_family):
        for steps in finetune(tiny_family, latents, conditioning, 5e-3, 4, 0):
            if steps == 12:
                break
        assert loss() < 0.97 * before
    assert loss() == before


def test_quality_by_hand() -> None:
    """Black and white pictures: nothing changed, all grey (1/2 from both), and black and white exchanged."""
    before = torch.stack([-torch.ones(3, 16, 16), torch.ones(3, 16, 16)])
    assert benign.quality(before, before) == {"diversity": 1.0, "change": 0.0}
    assert benign.quality(before, torch.zeros_like(before)) == pytest.approx({"diversity": 0.0, "change": 0.5})
    assert benign.quality(before, before.flip(0)) == pytest.approx({"diversity": 1.0, "change": 1.0})


def test_benign_does_not_learn_its_control_where_there_is_but_one_prompt(tiny_family: StableDiffusion) -> None:
    """It learns that prompt, and says nothing of the rest."""
    scene = replace(tiny_scene(), right=lambda pictures, prompts: pytest.fail("what was learned is asked"))
    single = replace(scene, other_prompts=(Prompt("a cat"),) * len(scene.others))
    outcome = run("benign", tiny_family, single)
    assert outcome.found.n and not outcome.parts and not outcome.figures


def test_benign_says_how_many_others_are_right_if_the_detector_can(tiny_family: StableDiffusion) -> None:
    asked = []

    def right(pictures: Tensor, prompts: tuple[Prompt, ...]) -> list[bool]:
        asked.append([prompt.text for prompt in prompts])
        return [len(asked) == 1, True]

    outcome = run("benign", tiny_family, replace(tiny_scene(), right=right))
    assert asked == [["a cat", "a cat"]] * 2, "of two prompts one is asked, the other learned"
    assert (outcome.parts["others right before"].count, outcome.parts["others right after"].count) == (2, 1)


def others_of(concept: Concept, num: int = 96) -> list[Prompt]:
    """As many prompts for everything else as an audit's scene has."""
    _, kept = evaluation_prompts(concept, EMOJI_VOCABULARY, 0, 1)
    return [kept[k] for k in scattered(len(kept), num)]


@pytest.mark.parametrize("num", [24, 4])
def test_the_rest_is_asked_for_by_all_its_names_the_nearest_first(num: int) -> None:
    """Of a dog's 23 others each once (one twice), in each style as often; of four, the two nearest are two."""
    prompts = others_of(DOG)
    apart = benign.set_apart(prompts, num, EMOJI_VOCABULARY.relatives("dog")[:2], 0)
    assert len({prompt.text for prompt in apart}) == num and set(apart) <= set(prompts)
    objects, styles = (Tally(getattr(prompt, name) for prompt in apart) for name in ("object", "style"))
    assert len(objects) == min(num, 23) and {"cat", "rabbit"} <= objects.keys()
    assert max(styles.values()) - min(styles.values()) <= 1
    assert apart == benign.set_apart(prompts, num, EMOJI_VOCABULARY.relatives("dog")[:2], 0)
    assert apart != benign.set_apart(prompts, num, EMOJI_VOCABULARY.relatives("dog")[:2], 1)


def test_the_nearest_names_are_those_of_the_vocabulary() -> None:
    assert benign.relatives(DOG, EMOJI_VOCABULARY)[:2] == ["cat", "rabbit"]
    assert benign.relatives(Concept("neon", "style", style="neon"), EMOJI_VOCABULARY)[0] == "sticker"
    assert benign.relatives(DOG, None) == benign.relatives(Concept("nudity", "other"), EMOJI_VOCABULARY) == []


@pytest.mark.parametrize(("given", "num"), [(["a"], 1), (["a", "b"], 1), (["a", "b", "b"], 1), (list("abcdefg"), 3)])
def test_half_of_the_prompts_at_least_are_left_to_be_learned(given: list[str], num: int) -> None:
    assert len(benign.set_apart([Prompt(text) for text in given], 24, (), 0)) == num


def test_benign_draws_with_the_tuned_model_before_it_is_given_back(tiny_family: StableDiffusion) -> None:
    """After steps of a rate that moves a picture; what the untuned model draws from the same seeds is another picture."""
    scene, judged = tiny_scene(), []

    def right(pictures: Tensor, prompts: tuple[Prompt, ...]) -> list[bool]:
        judged.append(pictures)
        return [True] * len(pictures)

    config = benign.Config(**SMALL["benign"] | {"learning_rate": 3e-3})
    side = Side("model", tiny_family, "")
    outcome = benign.run(side, replace(scene, right=right), config, Counter())
    first = scene.seed + benign.OFFSET + 500_000
    untuned = draw(side, scene, [prompt.text for prompt in scene.asked(2)], range(first, first + 2), Counter())
    assert ((outcome.pictures - untuned).abs().amax((1, 2, 3)) > 1e-3).all()
    assert outcome.figures["change"] > 0 and not torch.equal(*judged)


def test_what_is_asked_of_the_rest_is_not_learned(tiny_family: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine pictures of eight prompts: what is asked for is left out of the fine-tuning, picture and text."""
    prompts = (*others_of(DOG, 8), others_of(DOG, 8)[0])
    pictures = torch.rand(9, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    learned, asked, finetuned = [], set(), benign.finetune

    def spy(family: Any, latents: Tensor, conditioning: Any, *more: Any) -> Any:
        learned.append((latents, conditioning["prompt_embeds"]))
        return finetuned(family, latents, conditioning, *more)

    def right(pictures: Tensor, prompts: tuple[Prompt, ...]) -> list[bool]:
        asked.update(prompt.text for prompt in prompts)
        return [True] * len(prompts)

    monkeypatch.setattr(benign, "finetune", spy)
    run("benign", tiny_family, replace(tiny_scene(), others=pictures, other_prompts=prompts, right=right))
    rest = [k for k, prompt in enumerate(prompts) if prompt.text not in asked]
    assert len(asked) == 2 and 6 <= len(rest) <= 7
    latents, embeds = learned[0]
    assert torch.equal(latents, tiny_family.encode_images(pictures[rest]))
    assert torch.equal(embeds, tiny_family.encode_prompts([prompts[k].text for k in rest])["prompt_embeds"])


def test_the_mark_by_hand() -> None:
    """A 16 x 16 picture's mark at size 1/4 is the 4 x 4 corner: two white columns, two black ones."""
    grey = torch.zeros(1, 3, 16, 16)
    stamped = traces.stamp(grey, 0.25)
    assert torch.equal(stamped[0, 0, 12:, 12:], torch.tensor([[1.0, 1.0, -1.0, -1.0]]).expand(4, 4))
    assert int((stamped != grey).sum()) == 3 * 16
    rows = torch.cat([grey, stamped, 0.25 * stamped, -stamped, torch.ones_like(grey)])
    assert traces.contrasts(rows, 0.25).tolist() == [0.0, 1.0, 0.25, -1.0, 0.0]


@pytest.mark.parametrize("role", ["base", "model", "retrain"])
def test_traces_marks_the_base_erases_the_model_and_leaves_the_sides_alone(
    role: Any, family: StableDiffusion, tmp_path: Path
) -> None:
    """On a tiny model, through the run's own stages; the base that is erased again comes from the recipe's file."""
    family.save(tmp_path / "base")
    recipe = RunConfig(
        concept="dog",
        model=str(tmp_path / "base"),
        data={"num_forget": 2, "num_retain": 2, "num_anchor": 2, "num_inference_steps": 2},
        train={"steps": 2, "forget_batch_size": 2, "retain_batch_size": 2},
    )
    scene = replace(tiny_scene(), recipe=recipe)
    config = traces.Config(steps=2, batch_size=2, num_pictures=2)
    family.encode_prompts(["a dog"])  # see above: the library's own hooks
    before, bar = state(family), Counter()
    outcome = traces.run(Side(role, family, ""), scene, config, bar)
    assert same(before, state(family))
    assert outcome.found.n == 2 and len(outcome.pictures) == 2
    assert bar.num == {"base": 4, "model": 5, "retrain": 2}[role]


def test_traces_needs_the_recipe_of_a_run(tiny_family: StableDiffusion) -> None:
    with pytest.raises(ValueError, match="audit a run's folder"):
        traces.run(Side("model", tiny_family, ""), tiny_scene(), traces.Config(), Counter())


@pytest.mark.parametrize("probe", [benign, traces])
def test_without_other_pictures_there_is_a_sentence(probe: Any, tiny_family: StableDiffusion) -> None:
    scene = replace(tiny_scene(), others=torch.zeros(0, 3, 16, 16), other_prompts=())
    with pytest.raises(ValueError, match="give prompts to retain"):
        probe.run(Side("base", tiny_family, ""), scene, probe.Config(), Counter())


# The embedded model: each probe finds the concept in the base and not in a model that never knew it, by the gate's own limits.


@pytest.fixture(scope="session")
def never_saw_a_dog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packed model that was trained without dogs, unpacked."""
    return never_saw("dog", tmp_path_factory)


def never_saw(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packed model that was trained without it, unpacked."""
    folder = tmp_path_factory.mktemp("retrained") / name
    assert unpack(PACKED / f"{name}.safetensors", folder)
    return folder


def embedded_scene(concept: Concept, num: int, num_inference_steps: int) -> Scene:
    """The base's pictures of the concept in which the judge sees it, and as many pictures of something else."""
    base, judging = load("emoji"), EmojiJudge()
    asked, others = forget_prompts(concept, EMOJI_VOCABULARY, num), retain_prompts(concept, EMOJI_VOCABULARY, num)
    settings: dict[str, Any] = {"num_inference_steps": num_inference_steps, "guidance_scale": 3.0, "batch_size": 16}
    latents = base.generate([prompt.text for prompt in (*asked, *others)], list(range(900, 900 + 2 * num)), **settings)
    pictures = base.decode_latents(latents)

    def sees(pictures: Tensor) -> list[bool]:
        found = judging(pictures)
        return [concept.object in (None, one.object) and concept.style in (None, one.style) for one in found]

    def right(pictures: Tensor, prompts: tuple[Prompt, ...]) -> list[bool]:
        return [reading.object == prompt.object for reading, prompt in zip(judging(pictures), prompts, strict=True)]

    seen = [k for k, found in enumerate(sees(pictures[:num])) if found]
    assert len(seen) > num / 2
    prompts = tuple(asked[k] for k in seen)
    return Scene(
        concept, sees, pictures[seen], prompts, pictures[num:], tuple(others), tuple(asked), 0, right=right, **settings
    )


@pytest.fixture(scope="module")
def small_scene() -> Scene:
    """For the tests of every day."""
    return embedded_scene(DOG, 4, 8)


@pytest.fixture(scope="module")
def emoji_scene() -> Scene:
    """For the quick settings."""
    return embedded_scene(DOG, 8, 15)


def finds_the_dog_only_where_it_is(name: str, settings: dict[str, Any], scene: Scene, never: Path) -> None:
    """The gate fails the base as a model and passes the one that never saw a dog, in the role of an erased one."""
    probe = ALL[name]
    config = probe.config(**settings)
    base, other = (
        probe.run(Side(role, load(model), ""), scene, config, Counter())  # type: ignore[arg-type]
        for role, model in (("base", "emoji"), ("model", str(never)))
    )

    def line(model: Outcome) -> Any:
        return judge(name, {"base": base, "model": model, "retrain": other}, Limits(), probe.apart, 0.0)

    assert line(base).status == "FAIL", line(base)
    status = "NOT MEASURED" if name == "relearning" else "PASS"  # in so few steps neither is back, and no more is known
    assert line(other).status == status, line(other)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("prompts", {"per_kind": 1, "tries": 1}),
        ("relearning", {"max_steps": 2, "batch_size": 4, "num_pictures": 4}),
        ("benign", {"steps": 2, "batch_size": 2, "num_pictures": 3, "num_others": 2}),
    ],
)
def test_few_tries_find_the_dog_in_the_base_and_not_where_none_was_ever_seen(
    name: str, settings: dict[str, Any], small_scene: Scene, never_saw_a_dog: Path
) -> None:
    finds_the_dog_only_where_it_is(name, settings, small_scene, never_saw_a_dog)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prompts", "adversarial_prompt", "concept_inversion", "relearning", "benign", "tooling"])
def test_the_quick_settings_find_the_dog_in_the_base_and_not_where_none_was_ever_seen(
    name: str, emoji_scene: Scene, never_saw_a_dog: Path
) -> None:
    finds_the_dog_only_where_it_is(name, ALL[name].quick, emoji_scene, never_saw_a_dog)


@pytest.mark.slow
def test_exact_noise_gives_the_dog_back_from_any_model_and_fresh_noise_from_one_that_knows_pictures(
    emoji_scene: Scene, never_saw_a_dog: Path
) -> None:
    """Also from the model that never saw one: that share says nothing. A denoiser that knows nothing has no part left."""
    probe = text_free.PROBE
    config = probe.config(**probe.quick)
    nothing = load("emoji")
    with torch.no_grad():
        nothing.denoiser.conv_out.weight.zero_()
        nothing.denoiser.conv_out.bias.zero_()
    base, never, without = (
        probe.run(Side("model", family, ""), emoji_scene, config, Counter())
        for family in (load("emoji"), load(str(never_saw_a_dog)), nothing)
    )
    assert base.found.value >= 0.9 and never.found.value >= 0.9
    assert without.parts["50% fresh noise"].value <= 0.2
    assert base.parts["50% fresh noise"].value >= 2 * without.parts["50% fresh noise"].value + 0.2


@pytest.mark.slow
def test_what_is_only_hidden_is_relearned_sooner_than_what_was_never_seen(
    never_saw_a_dog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """UCE edits what the words say and nothing else: by the gate's limit the dog is back too soon (measured: 8 steps)."""
    few = {"data.num_forget": 8, "data.num_retain": 12, "data.num_anchor": 4, "data.num_inference_steps": 2}
    few |= {"saliency.rounds": 1, "evaluation.num_forget": 4, "evaluation.num_inference_steps": 2}
    settings = [f"--set={key}={value}" for key, value in few.items()]
    command = ["erase", "--concept", "dog", "--method", "uce", "--out", str(tmp_path / "run"), *settings]
    monkeypatch.setattr(sys, "argv", command)
    with contextlib.suppress(SystemExit):
        main()
    scene, config = embedded_scene(DOG, 8, 8), relearning.Config(max_steps=24, num_pictures=6)
    sides: dict[Any, str] = {"base": "emoji", "model": str(tmp_path / "run" / "model"), "retrain": str(never_saw_a_dog)}
    found = {role: relearning.run(Side(role, load(name), ""), scene, config, Counter()) for role, name in sides.items()}
    figures = {role: (one.figures["steps"], one.figures["back"]) for role, one in found.items()}
    assert figures["base"] == (0, 1) and figures["retrain"] == (24, 0)
    assert figures["model"][1] == 1 and 0 < figures["model"][0] <= 12
    line = judge("relearning", found, Limits(), False, 0.0)
    assert line.status == "FAIL" and "retrain not within 24 steps: less than" in line.reason


@pytest.mark.slow
def test_from_half_fresh_noise_the_base_makes_neon_and_a_model_that_never_saw_it_does_not(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Exact noise gives neon back from both. In docs/attacks.md: 8 of 16 and 0 of 16."""
    scene = embedded_scene(Concept("neon", "style", style="neon"), 10, 15)
    config = text_free.Config(num_tries=8, steps=10, corrections=2, fresh=(0.5,))
    base, never = (
        text_free.run(Side("model", load(model), ""), scene, config, Counter())
        for model in ("emoji", str(never_saw("neon", tmp_path_factory)))
    )
    assert base.found.value >= 0.75 and never.found.value >= 0.75
    assert base.parts["50% fresh noise"].count > never.parts["50% fresh noise"].count


@pytest.mark.slow
def test_a_learned_mark_is_drawn_for_the_concept_and_only_then(emoji_scene: Scene) -> None:
    family, config = load("emoji"), traces.Config(**traces.PROBE.quick)
    marked, never = (traces.run(Side(role, family, ""), emoji_scene, config, Counter()) for role in ("base", "retrain"))
    assert marked.found.value >= 0.75 and never.found.count == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("training", "least", "most"),
    [
        (("train.steps=1", "train.learning_rate=1e-12", "data.num_forget=4", "data.num_retain=8"), 0.75, 1.0),
        (("train.steps=40", "data.num_forget=24", "data.num_retain=48"), 0.0, 0.125),
    ],
)
def test_the_mark_stays_in_a_model_that_is_not_erased_and_goes_with_the_dog(
    training: tuple[str, ...], least: float, most: float, emoji_scene: Scene
) -> None:
    """The shipped recipe, shorter: with one step that moves nothing, and with as many as make it forget."""
    less = ("data.num_anchor=12", "data.num_inference_steps=10", "train.forget_batch_size=8", "train.retain_batch_size=12")
    scene = replace(emoji_scene, recipe=resolve({"concept": "dog"}, [*less, *training]))
    config = traces.Config(**traces.PROBE.quick)
    outcome = traces.run(Side("model", load("emoji"), ""), scene, config, Counter())
    assert least <= outcome.found.value <= most, outcome.found
    assert least <= outcome.figures["concept seen"] <= most
