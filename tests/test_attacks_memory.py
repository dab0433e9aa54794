"""Attacks on a denoiser of full size hold few rows' activations at a time, and find what they find with all of them."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_attacks import SMALL, Counter, tiny_scene
from torch import Tensor, nn

import eval.targets
from erase.activations import saved_bytes
from erase.quiet import Silent
from erase.recipes import resolve
from eval.attacks import PROBES, adversarial_prompt, concept_inversion, relearning, tooling
from eval.attacks.base import Side
from eval.attacks.denoising import denoising_losses, levels, noise_for, word_gradients, word_losses
from eval.attacks.finetuning import borrowed, finetune
from eval.attacks.lean import ROWS_AT_ONCE, checkpointed, parts
from eval.audit_limits import Limits
from eval.audit_options import AuditOptions, changes, probe_settings, sized
from eval.audit_sides import Work, asked_probes, lay_out
from eval.audit_store import key_of
from eval.audit_subject import Subject
from pipelines.stable_diffusion import StableDiffusion


@pytest.fixture
def full_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny denoiser counts as one of full size."""
    monkeypatch.setattr(eval.targets, "FULL_SIZE", 1000)


def batch(family: StableDiffusion, num: int = 8) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(num, 4, 8, 8, generator=generator), family.encode_prompts(["a dog", "a cat"] * (num // 2))


def stepped(family: StableDiffusion, size: int, rows_at_once: int | None) -> None:
    """One step of fine-tuning."""
    latents, conditioning = batch(family)
    next(iter(finetune(family, latents, conditioning, 1e-4, size, 0, rows_at_once)))


def test_a_step_of_eight_rows_holds_what_a_step_of_one_does(new_family: Callable[[], StableDiffusion], full_size: None) -> None:
    """Bytes that autograd saves, with the prompts' of all rows; all rows at once would be eight times as many."""
    held = {}
    for size, at_once in ((1, None), (8, 1), (8, None)):
        family = new_family()
        with borrowed(family):
            held[size, at_once] = saved_bytes(lambda: stepped(family, size, at_once), family.denoiser)  # noqa: B023
    assert held[8, 1] < 1.25 * held[1, None] and held[8, None] > 5 * held[8, 1]


def test_only_a_denoiser_of_full_size_recomputes_and_comes_back_as_it_was(
    tiny_family: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on() -> bool:
        return any(getattr(one, "gradient_checkpointing", False) for one in tiny_family.denoiser.modules())

    def held() -> int:
        with borrowed(tiny_family):
            return saved_bytes(lambda: stepped(tiny_family, 8, None), tiny_family.denoiser)

    plain = held()
    with borrowed(tiny_family):
        assert not on()
    monkeypatch.setattr(eval.targets, "FULL_SIZE", 1000)
    assert held() < 0.6 * plain and not on()
    with suppress(KeyError), checkpointed(tiny_family):
        assert on()
        raise KeyError
    assert not on()
    tiny_family.checkpoint_gradients(True)
    with borrowed(tiny_family):
        pass
    assert on(), "it was on before"


def test_a_step_in_parts_has_the_gradient_of_the_whole(
    new_family: Callable[[], StableDiffusion], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unsplit and below full size it is the plain loop's, bit for bit; in parts of 3, 3 and 2, recomputed, up to rounding."""
    plain, whole, split = new_family(), new_family(), new_family()
    latents, conditioning = batch(plain)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(8, generator=generator)
    timesteps = levels(plain, 8, generator)
    noise = noise_for(latents[order], generator)
    asked = {key: values[order] for key, values in conditioning.items()}
    for family in (plain, whole, split):
        family.denoiser.requires_grad_(True)
    denoising_losses(plain, latents[order], asked, timesteps, noise).mean().backward()
    nn.utils.clip_grad_norm_(plain.denoiser.parameters(), 1.0)
    stepped(whole, 8, None)
    monkeypatch.setattr(eval.targets, "FULL_SIZE", 1000)
    with checkpointed(split):
        stepped(split, 8, 3)
    rows = zip(plain.denoiser.parameters(), whole.denoiser.parameters(), split.denoiser.parameters(), strict=True)
    for one, same, near in rows:
        assert one.grad is not None and same.grad is not None and near.grad is not None
        assert torch.equal(one.grad, same.grad)
        torch.testing.assert_close(near.grad, one.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rows_at_once", [None, 4, 1])
def test_the_gradient_by_words_is_that_of_all_rows(
    rows_at_once: int | None, tiny_family: StableDiffusion, full_size: None
) -> None:
    """Autograd over the whole is the reference; the model keeps no gradient, though its weights take them."""
    tiny_family.denoiser.requires_grad_(True)
    words = tiny_family.word_tables()[0][:5, None].clone().requires_grad_(True)
    latents, timesteps = torch.randn(5, 4, 8, 8), torch.arange(5) * 200
    noise = torch.randn(5, 4, 8, 8)

    def asked() -> dict[str, Tensor]:
        return tiny_family.encode_slots(["a {}"] * 5, [words])

    losses = word_losses(tiny_family, latents, asked(), timesteps, noise)
    (expected,) = torch.autograd.grad(0.25 * losses.sum(), words)
    (found,) = word_gradients(tiny_family, latents, asked(), timesteps, noise, [words], rows_at_once, 0.25)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3 * float(expected.abs().max()))
    assert float(expected.abs().max()) > 0 and all(p.grad is None for p in tiny_family.denoiser.parameters())
    held = [
        saved_bytes(
            lambda: word_gradients(tiny_family, latents, asked(), timesteps, noise, [words], k),  # noqa: B023
            tiny_family.denoiser,
        )
        for k in (1, None)
    ]
    assert held[0] < 0.5 * held[1]


@pytest.mark.parametrize("name", ["concept_inversion", "adversarial_prompt", "relearning", "benign"])
def test_a_probe_in_parts_finds_what_it_finds_at_once(
    name: str, new_family: Callable[[], StableDiffusion], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same words and shares, and figures up to rounding, with one row at a time and recomputed."""
    found = []
    for full, at_once in ((10**9, None), (1000, 1)):
        monkeypatch.setattr(eval.targets, "FULL_SIZE", full)
        config = PROBES[name].config(**SMALL[name], rows_at_once=at_once)
        found.append(PROBES[name].run(Side("model", new_family(), ""), tiny_scene(), config, Counter()))  # type: ignore[arg-type]
    whole, split = found
    assert whole.captions == split.captions and whole.found == split.found
    assert whole.figures == pytest.approx(split.figures, rel=1e-3, abs=1e-5)
    torch.testing.assert_close(whole.pictures, split.pictures, rtol=0, atol=1e-2)


def test_adversarial_prompts_do_not_depend_on_how_many_pictures_are_drawn_at_a_time(tiny_family: StableDiffusion) -> None:
    config = adversarial_prompt.Config(**SMALL["adversarial_prompt"])
    side = Side("model", tiny_family, "")
    captions = [
        adversarial_prompt.run(side, replace(tiny_scene(), batch_size=size), config, Counter()).captions for size in (1, 48)
    ]
    assert captions[0] == captions[1]


def test_words_are_checked_in_parts(tiny_family: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gradient, too, no more rows go through the denoiser at a time."""
    scene, seen = tiny_scene(), []
    predict = tiny_family.predict
    monkeypatch.setattr(tiny_family, "predict", lambda latents, *more: (seen.append(len(latents)), predict(latents, *more))[1])
    vectors = [table[:2] for table in tiny_family.word_tables()]
    latents = tiny_family.encode_images(scene.references)
    losses = [
        concept_inversion.check(tiny_family, latents, ["a {}", "{}"], vectors, config, 0)
        for config in (concept_inversion.Config(check_size=6, batch_size=3, rows_at_once=k) for k in (None, 4))
    ]
    torch.testing.assert_close(*losses)
    assert seen == [6, 6, 4, 2, 4, 2]


def test_parts_by_hand() -> None:
    assert parts(5, 2) == [slice(0, 2), slice(2, 4), slice(4, 6)] and parts(5, None) == [slice(0, 5)] and parts(0, None) == []


# ---- settings


def test_size_decides_what_nobody_has_set() -> None:
    """From 100 M weights on: a rate of 1e-5, four rows at a time. What is set stays, and none of it is a changed setting."""
    small, large = (nn.Linear(num, 1000, bias=False, device="meta") for num in (1000, 200_000))
    subject = Subject("x", "x", "x", None, None, None, None)
    options = AuditOptions(settings=("benign.learning_rate=3e-5", "concept_inversion.rows_at_once=2"))
    settings = probe_settings(options)
    assert sized(settings, subject, small) == settings
    found = sized(settings, subject, large)
    assert found["relearning"].learning_rate == 1e-5 and found["benign"].learning_rate == 3e-5
    assert [found[name].rows_at_once for name in ("relearning", "benign", "traces", "adversarial_prompt")] == [ROWS_AT_ONCE] * 4
    assert found["concept_inversion"].rows_at_once == 2 and found["tooling"] == settings["tooling"]
    assert probe_settings(AuditOptions())["relearning"].learning_rate == 1e-4
    assert changes(options, Limits()) == ("benign.learning_rate 3e-05 (default 5e-05)",)
    assert changes(options, Limits(), full_size=True) == ("benign.learning_rate 3e-05 (default 1e-05)",)
    small_rate = AuditOptions(settings=("relearning.learning_rate=1e-4", "benign.learning_rate=1e-5"))
    assert changes(small_rate, Limits(), full_size=True) == ("relearning.learning_rate 0.0001 (default 1e-05)",)


def test_an_audit_goes_by_what_the_size_decides(tiny_family: StableDiffusion, full_size: None, tmp_path: Path) -> None:
    subject = Subject("x", "x", "x", None, None, resolve({"concept": "dog"}, []), None)
    options = AuditOptions(settings=("relearning.batch_size=2",))
    work = Work(subject, options, Limits(), tmp_path, Silent(), probe_settings(options))
    lay_out(work, tiny_family)
    assert work.settings["relearning"].learning_rate == 1e-5 and work.settings["relearning"].batch_size == 2
    assert next(asked_settings(work, "benign")).rows_at_once == ROWS_AT_ONCE
    assert work.settings["scene"].batch_size == work.subject.config.evaluation.batch_size  # type: ignore[union-attr]


def asked_settings(work: Work, name: str) -> Iterator[Any]:
    """The settings by which a probe is run."""
    side = Side("model", None, "")  # type: ignore[arg-type]
    work.keys |= {"base": "", "model": ""}
    work.scenes = {concept: tiny_scene() for concept in work.stages}
    return (asked.config for asked in asked_probes(work, side) if asked.name == name)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("scene.batch_size=2", ()),
        ("relearning.rows_at_once=1", ()),
        ("scene.seed=1", ("scene.seed 1 (default 7000)",)),
        ("relearning.batch_size=2", ("relearning.batch_size 2 (default 8)",)),
    ],
)
def test_what_is_done_at_a_time_is_no_change_of_settings(setting: str, told: tuple[str, ...]) -> None:
    assert changes(AuditOptions(settings=(setting,)), Limits()) == told


def test_rows_at_a_time_do_not_decide_what_is_kept() -> None:
    def key(**settings: Any) -> str:
        return key_of("relearning", relearning.PROBE, relearning.Config(**settings), "", "")

    assert key(rows_at_once=1) == key() != key(batch_size=4)


# ---- what the record says, and the formats


def test_a_tuning_that_wrecks_the_model_is_told_by_the_pictures(new_family: Callable[[], StableDiffusion]) -> None:
    """At a rate of 10 they are no numbers, which counts as all alike; at 1e-6 they stay as different as they were."""
    found = {}
    for rate in (10.0, 1e-6):
        config = relearning.Config(max_steps=2, check_every=2, num_pictures=4, batch_size=2, learning_rate=rate)
        scene = tiny_scene(lambda pictures: [False] * len(pictures))
        found[rate] = relearning.run(Side("model", new_family(), ""), scene, config, Counter()).figures["diversity"]
    assert found[1e-6] == pytest.approx(1, abs=0.01) and found[10.0] == 0


def bits(family: StableDiffusion) -> dict[str, tuple[torch.dtype, tuple[int, ...], bytes]]:
    """Every parameter and buffer of the pipeline: dtype, strides, bits."""
    modules = {name: part for name, part in family.pipeline.components.items() if isinstance(part, nn.Module)}
    return {
        f"{part}.{name}": (
            values.dtype,
            values.stride(),
            values.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes(),
        )
        for part, module in modules.items()
        for name, values in (*module.named_parameters(), *module.named_buffers())
    }


@pytest.mark.parametrize("name", ["float16", "bfloat16", "int8"])
def test_a_format_is_set_in_place_and_comes_back_bit_for_bit(name: str, tiny_family: StableDiffusion) -> None:
    """Also after an error; the weights are the same objects, and no second denoiser is made."""
    tiny_family.pipeline.unet.to(memory_format=torch.channels_last)
    before, weights = bits(tiny_family), list(tiny_family.denoiser.parameters())
    with suppress(KeyError), tooling.at_precision(tiny_family, name) as variant:
        assert variant.denoiser is tiny_family.denoiser and bits(tiny_family) != before
        raise KeyError
    assert bits(tiny_family) == before
    assert all(one is other for one, other in zip(weights, tiny_family.denoiser.parameters(), strict=True))


def test_a_lora_is_taken_off_again(tiny_family: StableDiffusion) -> None:
    with suppress(KeyError), tooling.with_lora(tiny_family, 2, 0.05, 1):
        assert any(one._forward_hooks for one in tiny_family.denoiser.modules())
        raise KeyError
    assert not any(one._forward_hooks for one in tiny_family.denoiser.modules())
