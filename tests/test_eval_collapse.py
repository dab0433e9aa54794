"""The collapse gate: what answers with noise, grey, or one picture for all seeds fails it, whatever its UA."""

import copy
import tracemalloc
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from erase.evaluation import collapse_gate
from eval.audit_scene import collapse
from eval.collapse import Evidence, Gate, diversity, drift, judge_collapse, thumbnail
from eval.detectors import EmojiJudge
from eval.generate import draw
from eval.pictures import Picture, Request
from eval.quality import frechet, moments
from pipelines.load import load


def test_diversity_by_hand() -> None:
    """Group a: (0,0) and (3,4)/5 of unit length over 2 values: sqrt(1 / 2). Group b: equal pictures, 0. Mean: half of it."""
    rows = np.array([[0, 0], [0.6, 0.8], [1, 1], [1, 1]], float)
    assert diversity(rows, ["a", "a", "b", "b"]) == pytest.approx(np.sqrt(0.5) / 2)
    assert diversity(rows[:2], ["a", "b"]) == pytest.approx(np.sqrt(0.5)), "no group has two: all are one group"


@pytest.mark.parametrize("num", [9, 64])
def test_the_diversity_of_a_long_list_is_taken_in_blocks_of_its_rows(num: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a loop over pairs: at once, as all lists of the embedded model are, and in blocks of one row, or of 11 and a rest."""
    rows = np.random.default_rng(0).random((num, 12))
    pairs = [np.sqrt(((rows[i] - rows[j]) ** 2).mean()) for i in range(num) for j in range(i)]
    names = [str(k) for k in range(num)]
    assert diversity(rows, names) == pytest.approx(np.mean(pairs), rel=1e-12)
    monkeypatch.setattr("eval.collapse.MOST_AT_ONCE", 11 * 64 if num == 64 else 1)
    assert diversity(rows, names) == pytest.approx(np.mean(pairs), rel=1e-12)


def test_a_long_list_needs_no_memory_in_the_square_of_its_length() -> None:
    """12,000 pictures, whose distances alone would be 1.2 GB; they need some 110 MB."""
    tracemalloc.start()
    diversity(np.random.default_rng(0).random((12_000, 2)), [str(k) for k in range(12_000)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300e6


def test_a_check_says_how_many_pairs_it_rests_on_where_they_are_few() -> None:
    """By hand: of 6 prompts one is there twice and one three times, 1 + 3 pairs; of 20 different ones all 190 pairs count."""
    for prompts, pairs in ((["a", "a", "b", "b", "b", "c", "d", "e", "f"], 4), ([str(k) for k in range(20)], 190)):
        rows = np.random.default_rng(0).random((len(prompts), 3))
        pictures = [picture.model_copy(update={"prompt": p}) for picture, p in zip(some(len(prompts)), prompts, strict=True)]
        gathered = Evidence(pictures, rows, rows, None)
        check = next(c for c in judge_collapse(gathered, gathered).checks if c.name == "diversity")
        assert check.pairs == pairs and check.meaning.endswith("based on 4 pairs of pictures") is (pairs == 4)


def test_a_thumbnail_is_the_block_means() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    blocks = pixels.reshape(16, 3, 16, 3, 3).astype(float).mean((1, 3)).ravel() / 255
    assert np.abs(thumbnail(pixels) - blocks).max() <= 1 / 255, "rounded once per direction"


def some(num: int) -> list[Picture]:
    facts = {"guidance": 1.0, "steps": 1, "batch_size": 1, "model": "m", "sha256": ""}
    return [Picture(prompt=f"p{k // 4}", seed=k, file=f"{k}.png", **facts) for k in range(num)]


def evidence(images: list[np.ndarray], judge: EmojiJudge) -> Evidence:
    sure = [reading["anything"] for reading in judge.read(images)]
    return Evidence(some(len(images)), np.stack([thumbnail(image) for image in images]), judge.features(images), sure)


@pytest.fixture(scope="module")
def judge() -> EmojiJudge:
    return EmojiJudge()


@pytest.fixture(scope="module")
def emoji():
    return load("emoji")


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    prompts = ("a dog, sticker style", "a car, cartoon style", "a house, 3d style", "an apple, sticker style")
    return [Request(prompt=text, seed=10 * k + s, guidance=3.0, steps=8) for k, text in enumerate(prompts) for s in range(4)]


@pytest.fixture(scope="module")
def base(emoji, requests) -> list[np.ndarray]:
    return list(draw(emoji, requests, 16))


def kinds(base: list[np.ndarray]) -> dict[str, list[np.ndarray]]:
    rng = np.random.default_rng(0)
    return {
        "noise": [rng.integers(0, 256, image.shape, dtype=np.uint8) for image in base],
        "grey": [np.full_like(image, 128) for image in base],
        "one picture for all seeds": [base[4 * (k // 4)] for k in range(len(base))],
        "one picture for everything": [base[4]] * len(base),
    }


@pytest.mark.parametrize("kind", ["noise", "grey", "one picture for all seeds", "one picture for everything"])
def test_what_is_no_answer_fails(base, judge, kind) -> None:
    gate = judge_collapse(evidence(base, judge), evidence(kinds(base)[kind], judge))
    assert not gate.passed
    failed = {check.name for check in gate.checks if not check.passed}
    assert failed & {"noise": {"anything", "drift"}, "grey": {"anything", "diversity"}}.get(kind, {"diversity"})


def test_the_base_passes_against_itself_and_against_its_slight_change(base, judge) -> None:
    rng = np.random.default_rng(1)
    slight = [(image + rng.normal(0, 4, image.shape)).clip(0, 255).astype(np.uint8) for image in base]
    for other in (base, slight):
        gate = judge_collapse(evidence(base, judge), evidence(other, judge))
        assert gate.passed, gate
    itself = {c.name: c.value for c in judge_collapse(evidence(base, judge), evidence(base, judge)).checks}
    assert itself == {"anything": 1.0, "diversity": 1.0, "drift": 0.0}


def of_two(gap: float, sure: float, *features: float) -> Evidence:
    """Two pictures of one prompt so far apart, the detector so sure of both, with a feature each."""
    return Evidence(some(2), np.array([[0.0], [gap]]), np.array(features)[:, None], [sure, sure])


BASE = {"retain": of_two(0.4, 0.9, 0.0, 2.0), "forget": of_two(0.8, 0.5, 0.0, 1.0)}
MODEL = {"retain": of_two(0.3, 0.81, 1.0, 2.0), "forget": of_two(0.2, 0.4, 0.0, 1.0)}


def gates(base: dict[str, Evidence], model: dict[str, Evidence]) -> list[Gate | None]:
    """The gate as an audit and as a run's own evaluation ask for it."""
    sides: list[Any] = [SimpleNamespace(evidence=side) for side in (base, model)]
    return [collapse(base, model), collapse_gate(*sides)]


def test_the_gate_by_hand_from_both_kinds_of_pictures() -> None:
    """Ratios of the model's figures to the base's. Drift: means 1 and 1.5, variances 2 and 1/2: (1/4 + 5/2 - 2) / 2."""
    for gate in gates(BASE, MODEL):
        assert gate and not gate.passed
        found = {check.name: (check.value, check.passed) for check in gate.checks}
        assert found == {
            "anything": (0.9, True),
            "diversity": (0.75, True),
            "drift": (0.375, True),
            "anything_forget": (0.8, True),
            "diversity_forget": (0.25, False),
        }
    for gate in gates({"retain": BASE["retain"]}, MODEL):
        assert gate and gate.passed and {check.name for check in gate.checks} == {"anything", "diversity", "drift"}
    assert collapse({"forget": BASE["forget"]}, MODEL) is None


def test_pictures_for_the_concepts_prompts_that_show_nothing_fail_the_gate() -> None:
    """The detector half as sure of anything as in the base's, and a little less."""
    for sure, passed in ((0.25, True), (0.24, False)):
        for gate in gates(BASE, MODEL | {"forget": of_two(0.8, sure, 0.0, 1.0)}):
            assert gate and gate.passed is passed


def with_features(features: np.ndarray) -> Evidence:
    return Evidence(some(len(features)), np.zeros((len(features), 3)), features, None)


SPECTRA = {"flat": np.ones(2048), "falling": 1 / np.arange(1, 2049), "steep": np.arange(1, 2049) ** -1.5}


@pytest.mark.parametrize("name", list(SPECTRA))
def test_two_draws_of_one_distribution_have_not_drifted_apart_in_2048_dimensions(name: str) -> None:
    """As many pictures as an audit draws, of features as wide as ResNet-50's; what is broken is still told apart."""
    scale = np.sqrt(SPECTRA[name])
    for seed in range(3):
        rng = np.random.default_rng(seed)
        draw_once, draw_again = (np.abs(rng.normal(size=(96, 2048)) * scale) for _ in range(2))
        base = with_features(draw_once)
        assert (drift(base, with_features(draw_again)) or 9.0) < 0.3, "well below the limit"
        assert drift(base, base) == pytest.approx(0.0, abs=1e-6)
        broken = {
            "one picture": np.repeat(draw_once[:1], 96, 0),
            "moved": draw_again + scale * rng.choice([-1, 1], 2048),
            "half of what it shows is gone": np.where(np.arange(2048) % 2, draw_again, 0),
        }
        for what, features in broken.items():
            assert (drift(base, with_features(features)) or 0.0) > 0.5, what
    few = [with_features(np.abs(rng.normal(size=(24, 2048)) * scale)) for _ in range(2)]
    assert drift(*few) is None, "so few cannot tell"


def test_features_as_narrow_as_the_embedded_judges_are_compared_whole() -> None:
    rng = np.random.default_rng(0)
    base, other = (with_features(rng.normal(size=(24, 192)).astype(np.float32)) for _ in range(2))
    whole = frechet(moments([other.features]), moments([base.features])) / np.trace(moments([base.features]).covariance)
    assert drift(base, other) == whole


def test_gradient_ascent_too_far_has_a_perfect_ua_and_fails(emoji, requests, base, judge) -> None:
    """A few steps up the denoising loss on pictures of dogs: no dog is seen any more, nor anything else."""
    family = copy.copy(emoji)
    family.pipeline = copy.copy(emoji.pipeline)
    family.pipeline.unet = copy.deepcopy(emoji.denoiser)
    latents = family.encode_images(torch.from_numpy(np.stack(base[:4])).permute(0, 3, 1, 2).float() / 127.5 - 1)
    conditioning = family.encode_prompts([requests[0].prompt] * 4)
    parameters = list(family.denoiser.parameters())
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(parameters, lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = torch.randint(family.num_train_timesteps, (4,), generator=generator)
        prediction = family.predict(family.add_noise(latents, noise, timesteps), timesteps, conditioning)
        optimizer.zero_grad()
        (-(prediction - family.target(latents, noise, timesteps)).square().mean()).backward()
        optimizer.step()
    family.denoiser.requires_grad_(False)
    collapsed = list(draw(family, requests, 16))
    dogs = [reading["object"] == "dog" for reading in judge.read(collapsed[:4])]
    assert sum(reading["object"] == "dog" for reading in judge.read(base[:4])) >= 3
    assert not any(dogs), "UA is 100 %"
    gate = judge_collapse(evidence(base[4:], judge), evidence(collapsed[4:], judge))
    assert not gate.passed
