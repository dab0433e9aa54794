"""The training loop (exact resume, seeds, teacher, errors) and SalUn's loss against plain diffusers calls."""

import dataclasses
import json
import math
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import family_of
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from torch import Tensor

from erase.config import TrainConfig
from erase.data import TrainingData
from erase.files import metadata_of
from erase.methods import salun
from erase.methods.base import Config, Step
from erase.methods.concept_ablation import ConceptAblation
from erase.methods.salun import SalUn
from erase.saliency import Mask
from erase.salient import SalientWeights
from erase.train import _LossScale, schedule, train
from pipelines.family import Conditioning
from pipelines.stable_diffusion import StableDiffusion

NewFamily = Callable[[], StableDiffusion]
SMALL = TrainConfig(steps=6, learning_rate=1e-3, warmup_steps=2, forget_batch_size=4, retain_batch_size=3, checkpoint_every=100)


def random_mask(family: StableDiffusion, density: float = 0.4) -> Mask:
    generator = torch.Generator().manual_seed(11)
    return {name: torch.rand(p.shape, generator=generator) < density for name, p in family.denoiser.named_parameters()}


def weights(family: StableDiffusion) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in family.denoiser.named_parameters()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def trained(
    family: StableDiffusion, data: TrainingData, method: Config | None = None, config: TrainConfig = SMALL, seed: int = 0
) -> list[dict[str, Any]]:
    salient = SalientWeights(family.denoiser, random_mask(family), lean=True)
    records = list(train(family, salient, data, method or SalUn(), config, seed=seed))
    salient.close()
    return records


def whole_loss(method: SalUn, step: Step) -> tuple[Tensor, dict[str, float]]:
    """The loss of one step in one part."""
    rows = salun.rows(method, step)
    return salun.loss(method, step, rows, salun.targets(method, step, rows))


def without_seconds(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


Uninterrupted = tuple[list[dict[str, Any]], dict[str, Tensor]]


@pytest.fixture(scope="module")
def uninterrupted(tiny_pipeline: StableDiffusionPipeline, tiny_data: TrainingData) -> Uninterrupted:
    """(records, weights) of a whole run with seed 0."""
    family = family_of(tiny_pipeline)
    return without_seconds(trained(family, tiny_data)), weights(family)


def run_on(
    family: StableDiffusion, data: TrainingData, state: Path, every: int, kind: type[SalientWeights] = SalientWeights
) -> Generator[dict[str, Any], None, None]:
    """The same run with a state file, from where that file is."""
    config = SMALL.model_copy(update={"checkpoint_every": every})
    return train(family, kind(family.denoiser, random_mask(family), lean=True), data, SalUn(), config, seed=0, state=state)


def test_only_masked_weights_move_in_a_whole_run(tiny_family: StableDiffusion, tiny_data: TrainingData) -> None:
    before, mask = weights(tiny_family), random_mask(tiny_family)
    records = trained(tiny_family, tiny_data)
    for name, after in weights(tiny_family).items():
        changed = before[name] != after
        assert not changed[~mask[name]].any(), f"{name}: a weight outside the mask moved"
        assert changed[mask[name]].any() or not mask[name].any(), f"{name}: nothing inside the mask moved"
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "forget_loss", "retain_loss", "learning_rate", "seconds"} < records[0].keys()


def test_training_forgets(new_family: NewFamily, tiny_data: TrainingData) -> None:
    """On the same noisy latents, never drawn in training, the forget loss is half of what it was."""
    family, untouched = new_family(), new_family()

    def forget_loss() -> float:
        teacher = torch.no_grad()(untouched.predict)
        step = Step(family, teacher, tiny_data, 48, 1, torch.Generator().manual_seed(99))
        with torch.no_grad():
            return whole_loss(SalUn(), step)[1]["forget_loss"]

    before = forget_loss()
    trained(family, tiny_data, config=SMALL.model_copy(update={"steps": 25, "forget_batch_size": 8}))
    assert 0 < forget_loss() < 0.5 * before


def test_the_same_seed_gives_the_same_result_and_another_another(
    new_family: NewFamily, tiny_data: TrainingData, uninterrupted: Uninterrupted
) -> None:
    again, other = new_family(), new_family()
    assert without_seconds(trained(again, tiny_data)) == uninterrupted[0]
    assert same(weights(again), uninterrupted[1])
    assert without_seconds(trained(other, tiny_data, seed=1)) != uninterrupted[0]
    assert not same(weights(other), uninterrupted[1])


@pytest.mark.parametrize(("stopped_after", "every"), [(1, 100), (4, 100), (5, 3)])
def test_resumed_is_uninterrupted(
    stopped_after: int,
    every: int,
    new_family: NewFamily,
    tiny_data: TrainingData,
    uninterrupted: Uninterrupted,
    tmp_path: Path,
) -> None:
    """The generator is closed after some steps; a new one with a fresh model and the state file does the rest.

    It yields the records from before the stop first, so that its records are those of the whole run.
    """
    run = run_on(new_family(), tiny_data, tmp_path / "state", every)
    for record in run:
        if record["step"] == stopped_after:
            break
    run.close()
    family = new_family()
    records = list(run_on(family, tiny_data, tmp_path / "state", every))
    assert without_seconds(records) == uninterrupted[0]
    assert same(weights(family), uninterrupted[1])


def test_a_killed_run_goes_on_from_the_last_checkpoint(
    new_family: NewFamily, tiny_data: TrainingData, uninterrupted: Uninterrupted, tmp_path: Path
) -> None:
    """What a power cut leaves: the file of step 4 of 6, while step 5 was done and lost."""
    state = tmp_path / "state"
    run = run_on(new_family(), tiny_data, state, every=2)
    while next(run)["step"] < 5:
        pass
    content = state.read_bytes()
    run.close()
    assert state.read_bytes() != content, "the file of a run that is closed is that of its last step"
    state.write_bytes(content)
    family = new_family()
    records = list(run_on(family, tiny_data, state, every=2))
    assert without_seconds(records) == uninterrupted[0]
    assert same(weights(family), uninterrupted[1])


@pytest.mark.parametrize("time", [1, 2], ids=["relearner's step", "forget loss"])
def test_stopped_while_looking_ahead_is_uninterrupted(
    time: int, new_family: NewFamily, tiny_data: TrainingData, tmp_path: Path
) -> None:
    """Ctrl-C in step 3 while the weights are where the relearner is: what is on disk is of the checkpoint before, whole."""
    method = SalUn(lookahead_share=0.5, lookahead_steps=4)

    class Interrupted(SalientWeights):
        times = 0

        @contextmanager
        def displaced(self, by: dict[str, Tensor]) -> Iterator[None]:
            with super().displaced(by):
                self.times += 1
                if self.times == 4 + time:
                    raise KeyboardInterrupt
                yield

    def run(family: StableDiffusion, state: Path, kind: type[SalientWeights] = SalientWeights) -> list[dict[str, Any]]:
        salient = kind(family.denoiser, random_mask(family), lean=True)
        config = SMALL.model_copy(update={"checkpoint_every": 1})
        return without_seconds(list(train(family, salient, tiny_data, method, config, seed=0, state=state)))

    whole, resumed = new_family(), new_family()
    records = run(whole, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(new_family(), tmp_path / "state", Interrupted)
    with safe_open(tmp_path / "state", "pt") as file:
        assert [record["step"] for record in json.loads(metadata_of(file)["records"])] == [1, 2]
        assert int(file.get_tensor("memory/taken")) == 2
    assert run(resumed, tmp_path / "state") == records
    assert same(weights(whole), weights(resumed))


@pytest.mark.parametrize(("moment", "every", "saved"), [("loss", 100, True), ("step", 100, False), ("step", 1, True)])
def test_stopped_within_a_step_is_uninterrupted(
    moment: str,
    every: int,
    saved: bool,
    new_family: NewFamily,
    tiny_data: TrainingData,
    uninterrupted: Uninterrupted,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ctrl-C in step 3, while its teacher is put into the model, or after the optimizer's step while values are written.

    In the first case the two steps before are saved, in the second a step half taken is not. How many steps' targets are
    computed ahead makes no difference.
    """
    monkeypatch.setattr("erase.train.AHEAD", 2)

    class Interrupted(SalientWeights):
        swaps = steps = 0

        def _swap(self, names: list[str], *, back: bool) -> None:
            self.swaps += 1
            super()._swap(names[: len(names) // 2] if moment == "loss" and self.swaps == 3 else names, back=back)
            if moment == "loss" and self.swaps == 3:  # the teacher's originals went in and out for the first two steps
                raise KeyboardInterrupt

        def set_master(self, name: str, values: Tensor, positions: Tensor | None = None) -> None:
            self.steps += name == next(iter(self.values))
            if moment == "step" and self.steps == 3 and name != next(iter(self.values)):
                raise KeyboardInterrupt
            super().set_master(name, values, positions)

    state = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        list(run_on(new_family(), tiny_data, state, every, Interrupted))
    assert state.is_file() == saved
    if saved:
        with safe_open(state, "pt") as file:
            assert [record["step"] for record in json.loads(metadata_of(file)["records"])] == [1, 2]
    family = new_family()
    records = list(run_on(family, tiny_data, state, every))
    assert without_seconds(records) == uninterrupted[0]
    assert same(weights(family), uninterrupted[1])


@pytest.mark.parametrize("part", ["forget_latents", "retain_latents"])
def test_a_loss_that_is_not_finite_stops_before_the_first_step(
    part: str, tiny_family: StableDiffusion, tiny_data: TrainingData
) -> None:
    before = weights(tiny_family)
    data = dataclasses.replace(tiny_data, **{part: torch.full_like(getattr(tiny_data, part), math.nan)})
    with pytest.raises(ValueError, match=r"the loss became nan at step 1; .*train\.learning_rate"):
        trained(tiny_family, data)
    assert same(weights(tiny_family), before)


def test_a_loss_that_becomes_infinite_keeps_the_state_before_it(
    tiny_family: StableDiffusion, tiny_data: TrainingData, tmp_path: Path
) -> None:
    """A learning rate of 1e30: step 1 is taken, step 2 is not, and the file has the values of step 1."""
    config = SMALL.model_copy(update={"learning_rate": 1e30, "warmup_steps": 0})
    salient = SalientWeights(tiny_family.denoiser, random_mask(tiny_family), lean=True)
    state = tmp_path / "state.safetensors"
    run = train(tiny_family, salient, tiny_data, SalUn(), config, seed=0, state=state)
    assert next(run)["step"] == 1
    after_first = {name: salient.master(name).clone() for name in salient.values}
    with pytest.raises(ValueError, match="at step 2; the state before it is kept"):
        next(run)
    with safe_open(state, "pt") as file:
        assert [record["step"] for record in json.loads(metadata_of(file)["records"])] == [1]
        assert all(torch.equal(file.get_tensor(f"value/{name}"), value) for name, value in after_first.items())


@pytest.mark.parametrize("bound", [1e9, 1e-3])
def test_gradients_are_clipped_over_all_salient_weights_together(
    bound: float, new_family: NewFamily, tiny_data: TrainingData, tmp_path: Path
) -> None:
    """After one step Adam's first moment is a tenth of the gradient, by autograd: as it is below the bound, above it scaled so
    that all tensors together have the bound as their norm. (Clipped tensor by tensor, they would have several times that.)"""
    family, plain = new_family(), new_family()
    config = SMALL.model_copy(update={"max_grad_norm": bound, "checkpoint_every": 1})
    mask = random_mask(family)
    run = train(
        family, SalientWeights(family.denoiser, mask, lean=True), tiny_data, SalUn(), config, seed=0, state=tmp_path / "s"
    )
    next(run)
    run.close()
    plain.denoiser.requires_grad_(True)
    whole_loss(SalUn(), step_number(0, plain, new_family(), tiny_data))[0].backward()
    expected = {name: p.grad[mask[name]] for name, p in plain.denoiser.named_parameters() if p.grad is not None}
    norm = torch.cat(list(expected.values())).norm()
    assert 1e-2 < norm < 1e8
    with safe_open(tmp_path / "s", "pt") as file:
        for name, gradient in expected.items():
            found = file.get_tensor(f"exp_avg/{name}") if len(gradient) else gradient
            torch.testing.assert_close(
                found, 0.1 * gradient * min(1, bound / norm), rtol=1e-3, atol=1e-4 * 0.1 * min(bound, norm)
            )


def step_number(index: int, family: StableDiffusion, untouched: StableDiffusion, data: TrainingData) -> Step:
    """What a run of SMALL with seed 0 gives its method at this step: the random stream that the step has to itself."""
    generator = torch.Generator().manual_seed(1_000_003 + 700_000 + index)
    return Step(family, torch.no_grad()(untouched.predict), data, 4, 3, generator)


def test_the_weights_are_those_of_torchs_adam_with_the_schedule(new_family: NewFamily, tiny_data: TrainingData) -> None:
    """All weights salient, every gradient clipped: six steps of Adam on another copy, its learning rate set by hand."""
    family, plain, untouched = new_family(), new_family(), new_family()
    every = {name: torch.ones_like(p, dtype=torch.bool) for name, p in family.denoiser.named_parameters()}
    config = SMALL.model_copy(update={"max_grad_norm": 1e-2})
    salient = SalientWeights(family.denoiser, every, lean=True)
    records = list(train(family, salient, tiny_data, SalUn(), config, seed=0))
    rates = [5e-4, 1e-3, 1e-3, 1e-3, 1e-3, 5.5e-4]
    assert [record["learning_rate"] for record in records] == pytest.approx(rates)
    values = list(plain.denoiser.requires_grad_(True).parameters())
    optimizer = torch.optim.Adam(values, betas=(0.9, 0.99))
    for index, rate in enumerate(rates):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        whole_loss(SalUn(), step_number(index, plain, untouched, tiny_data))[0].backward()
        torch.nn.utils.clip_grad_norm_(values, 1e-2)
        optimizer.step()
    for name, expected in weights(plain).items():
        torch.testing.assert_close(weights(family)[name], expected, rtol=1e-4, atol=1e-5)


def test_the_schedule_by_hand() -> None:
    """Nine steps, warm-up of two: 1/2, then 1, and from 6/9 on 1 - 0.9 * (3 k / 9 - 2): 1, .7, .4."""
    assert [schedule(k, 9, 2) for k in range(9)] == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.7, 0.4])
    assert schedule(0, 1, 0) == 1


class Seen(StableDiffusion):
    """The family, and a record of what its denoiser was asked and answered, with and without gradient."""

    def __init__(self, family: StableDiffusion) -> None:
        super().__init__(family.pipeline, family.vocabulary)
        self.teacher: list[tuple[tuple[Tensor, Tensor, Conditioning], Tensor]] = []
        self.student: list[tuple[tuple[Tensor, Tensor, Conditioning], Tensor]] = []

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        prediction = super().predict(noisy_latents, timesteps, conditioning)
        calls = self.student if torch.is_grad_enabled() else self.teacher
        calls.append(((noisy_latents, timesteps, conditioning), prediction.detach().clone()))
        return prediction


@pytest.mark.parametrize("teacher", ["frozen", "moving"])
@pytest.mark.parametrize(("kind", "num"), [(SalUn, 2), (ConceptAblation, 1)])  # what is meant, and what the name would draw
def test_the_frozen_teacher_is_the_untouched_model_and_the_moving_one_is_not(
    kind: type[Config], num: int, teacher: str, new_family: NewFamily, tiny_data: TrainingData
) -> None:
    family, untouched = Seen(new_family()), new_family()
    trained(family, tiny_data, kind(teacher=teacher))
    assert len(family.student) == 6 and len(family.teacher) == 6 * num
    equal = []
    for asked, answered in family.teacher:
        with torch.no_grad():
            equal.append(torch.equal(untouched.predict(*asked), answered))
    assert equal == [True] * (6 * num) if teacher == "frozen" else equal == [True] * num + [False] * (5 * num)
    assert SalUn().teacher == "frozen" and ConceptAblation().teacher == "moving"


@pytest.mark.parametrize("teacher", ["frozen", "moving"])
def test_the_student_is_the_trained_model(teacher: str, new_family: NewFamily, tiny_data: TrainingData) -> None:
    """At step 1 it answers as the untouched model, later not."""
    family, untouched = Seen(new_family()), new_family()
    trained(family, tiny_data, SalUn(teacher=teacher))
    with torch.no_grad():
        equal = [torch.equal(untouched.predict(*asked), answered) for asked, answered in family.student]
    assert equal == [True] + [False] * 5


class Noticed(Step):
    """A step that remembers the clean latents and what was made of them."""

    def noisy(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        made = super().noisy(latents)
        object.__setattr__(self, "latents", latents)
        object.__setattr__(self, "made", made)
        return made


def one_step(family: Seen, data: TrainingData, forget: int = 6, retain: int = 4, seed: int = 0) -> Noticed:
    return Noticed(family, torch.no_grad()(family.predict), data, forget, retain, torch.Generator().manual_seed(seed))


def rows_of(embeds: Tensor, data: TrainingData) -> list[int]:
    """The rows of the table that these embeddings are."""
    return [next(i for i, row in enumerate(data.table["prompt_embeds"]) if torch.equal(row, embed)) for embed in embeds]


def pictures_of(latents: Tensor, data: TrainingData) -> list[tuple[str, int]]:
    """Which pictures of the forget or retain set these latents are."""
    sets = {"forget": data.forget_latents, "retain": data.retain_latents}
    return [next((s, i) for s, rows in sets.items() for i, row in enumerate(rows) if torch.equal(row, x)) for x in latents]


@pytest.mark.parametrize(("retain", "guidance"), [("distill", 0.0), ("denoise", 0.0), ("distill", 1.5), ("denoise", 0.5)])
def test_the_loss_by_plain_diffusers_calls(
    retain: str, guidance: float, new_family: NewFamily, tiny_data: TrainingData
) -> None:
    """Eq. 7 of the paper picture by picture, from the UNet itself and squared differences; the targets of the concept's own
    pictures led away from what the UNet predicts for its name."""
    family = Seen(new_family())
    step = one_step(family, tiny_data)
    config = SalUn(retain=retain, alpha=0.7, anchor_share=0.5, negative_guidance=guidance)
    total, record = whole_loss(config, step)

    (noisy_latents, timesteps, asked), _ = family.student[0]
    noise, unet, scheduler = step.made[2], family.pipeline.unet, family.noise_scheduler
    assert torch.equal(noisy_latents, scheduler.add_noise(step.latents, noise, timesteps))
    prompts = rows_of(asked["prompt_embeds"], tiny_data)
    embeds = tiny_data.table["prompt_embeds"]
    errors = []
    for k, (kind, picture) in enumerate(pictures_of(step.latents, tiny_data)):
        if k < 6 and kind == "forget":  # a picture of a dog, asked for as a dog, meant as the same prompt with a cat
            assert prompts[k] == tiny_data.forget_prompt[picture]
            meant = tiny_data.forget_relabel[picture, 0]
        elif k < 6:  # a picture of a cat, asked for as a dog
            assert prompts[k] == tiny_data.retain_dual[picture]
            meant = tiny_data.retain_prompt[picture]
        else:
            assert prompts[k] in (tiny_data.retain_prompt[picture], tiny_data.empty_prompt)
            meant = prompts[k]
        with torch.no_grad():
            x, t = noisy_latents[k : k + 1], timesteps[k]
            prediction = unet(x, t, encoder_hidden_states=embeds[prompts[k]][None]).sample
            target = unet(x, t, encoder_hidden_states=embeds[meant][None]).sample
            if k < 6 and kind == "forget":
                target = (1 + guidance) * target - guidance * prediction  # the student's weights are still the teacher's
            if k >= 6 and retain == "denoise":
                target = noise[k : k + 1]
        errors.append(((prediction - target) ** 2).mean().item())
    forget_loss, retain_loss = sum(errors[:6]) / 6, sum(errors[6:]) / 4
    assert forget_loss > 0 and (retain_loss > 0) == (retain == "denoise")
    assert record["forget_loss"] == pytest.approx(forget_loss, rel=1e-3)
    assert record["retain_loss"] == pytest.approx(retain_loss, rel=1e-3, abs=1e-9)
    assert total.item() == pytest.approx(forget_loss + 0.7 * retain_loss, rel=1e-3)


@pytest.mark.parametrize(("share", "num_own"), [(0.0, 6), (0.5, 3), (1.0, 0)])
def test_anchor_share(share: float, num_own: int, new_family: NewFamily, tiny_data: TrainingData) -> None:
    """0: only forget pictures, as in the paper; else that share are pictures of the anchor, asked for as the concept."""
    family = Seen(new_family())
    for seed in range(4):
        step = one_step(family, tiny_data, seed=seed)
        whole_loss(SalUn(anchor_share=share), step)
        pictures = pictures_of(step.latents, tiny_data)
        assert [kind for kind, _ in pictures] == ["forget"] * num_own + ["retain"] * (10 - num_own)
        assert {index for kind, index in pictures[num_own:6]} <= set(tiny_data.dual_index.tolist()) == {0, 1, 2}


def test_without_anchor_pictures_all_forget_pictures_are_the_concepts(new_family: NewFamily, tiny_data: TrainingData) -> None:
    data = dataclasses.replace(
        tiny_data, retain_dual=torch.full_like(tiny_data.retain_dual, -1), dual_index=torch.empty(0, dtype=torch.long)
    )
    step = one_step(Seen(new_family()), data)
    whole_loss(SalUn(anchor_share=1.0), step)
    assert [kind for kind, _ in pictures_of(step.latents, data)] == ["forget"] * 6 + ["retain"] * 4


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_empty_prompt_share(share: float, new_family: NewFamily, tiny_data: TrainingData) -> None:
    """Of the retain batch alone, and the same prompt for teacher and student."""
    family = Seen(new_family())
    step = one_step(family, tiny_data)
    whole_loss(SalUn(empty_prompt_share=share), step)
    for (_, _, conditioning), _ in (family.student[0], family.teacher[0]):
        prompts = rows_of(conditioning["prompt_embeds"], tiny_data)
        empty = [row == tiny_data.empty_prompt for row in prompts]
        assert empty == [False] * 6 + [share == 1.0] * 4
        if not share:
            pictures = pictures_of(step.latents, tiny_data)
            assert prompts[6:] == [tiny_data.retain_prompt[index] for _, index in pictures[6:]]


@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.5])
def test_alpha_weighs_the_retain_loss(alpha: float, new_family: NewFamily, tiny_data: TrainingData) -> None:
    total, record = whole_loss(SalUn(alpha=alpha, retain="denoise"), one_step(Seen(new_family()), tiny_data))
    assert record["retain_loss"] > 0.1
    assert total.item() == pytest.approx(record["forget_loss"] + alpha * record["retain_loss"], rel=1e-5)


def test_the_target_carries_no_gradient(new_family: NewFamily, tiny_data: TrainingData) -> None:
    """With the moving teacher the gradient is that of the loss against fixed numbers."""
    family = Seen(new_family())
    step = one_step(family, tiny_data)
    parameter = family.denoiser.conv_out.weight.requires_grad_(True)
    total, _ = whole_loss(SalUn(alpha=1.0), step)
    (gradient,) = torch.autograd.grad(total, parameter)
    asked, target, named = family.student[0][0], family.teacher[0][1].clone(), family.teacher[1][1]
    target[:3] = 2 * target[:3] - named  # the three of the concept's own pictures
    squares = (StableDiffusion.predict(family, *asked) - target).square()
    (expected,) = torch.autograd.grad(squares[:6].mean() + squares[6:].mean(), parameter)
    torch.testing.assert_close(gradient, expected)
    assert gradient.any()


def test_random_label_draws_every_other_concept_and_concept_remap_one(new_family: NewFamily, tiny_data: TrainingData) -> None:
    """A relabel table with four columns is drawn from at random, each picture from its own row; with one it is always that."""
    num = len(tiny_data.forget_prompt)
    table = torch.stack([(torch.arange(4) + k) % len(tiny_data.table["prompt_embeds"]) for k in range(1, num + 1)])
    several = dataclasses.replace(tiny_data, forget_relabel=table)
    drawn: dict[int, set[int]] = {k: set() for k in range(num)}
    family = Seen(new_family())
    for seed in range(12):
        for data in (several, tiny_data):
            family.teacher.clear()
            step = one_step(family, data, seed=seed)
            whole_loss(SalUn(anchor_share=0.0), step)
            meant = rows_of(family.teacher[0][0][2]["prompt_embeds"], data)[:6]
            for (_, picture), row in zip(pictures_of(step.latents, data)[:6], meant, strict=True):
                assert row in data.forget_relabel[picture]
                if data is several:
                    drawn[picture].add(row)
    assert {k: sorted(rows) for k, rows in drawn.items()} == {k: sorted(table[k].tolist()) for k in range(num)}


def test_timesteps_are_one_in_each_equal_slice(tiny_family: StableDiffusion, tiny_data: TrainingData) -> None:
    """Of the 1000 timesteps, ten draws fall one into each hundred, in random order."""
    orders = set()
    for seed in range(3):
        step = Step(tiny_family, tiny_family.predict, tiny_data, 1, 1, torch.Generator().manual_seed(seed))
        _, timesteps, _ = step.noisy(torch.zeros(10, 4, 2, 2))
        assert sorted((timesteps // 100).tolist()) == list(range(10))
        orders.add(tuple(timesteps.tolist()))
    assert len(orders) == 3


def test_no_timestep_is_beyond_the_schedule(tiny_family: StableDiffusion, tiny_data: TrainingData) -> None:
    """A seed whose last slice draws a number next to 1, with the default batch of 16 + 24."""
    step = Step(tiny_family, tiny_family.predict, tiny_data, 16, 24, torch.Generator().manual_seed(142_946))
    _, timesteps, _ = step.noisy(torch.zeros(40, 4, 2, 2))
    assert timesteps.max() < 1000


@pytest.mark.parametrize("accumulate", [2, 7, 20])
def test_a_batch_in_parts_is_the_batch(
    accumulate: int, new_family: NewFamily, tiny_data: TrainingData, uninterrupted: Uninterrupted
) -> None:
    """Two parts, one row a part, more parts than rows: the losses and weights of the whole batch up to rounding."""
    family = new_family()
    records = trained(family, tiny_data, config=SMALL.model_copy(update={"accumulate": accumulate}))
    for record, expected in zip(records, uninterrupted[0], strict=True):
        for key in ("loss", "forget_loss", "retain_loss"):
            assert record[key] == pytest.approx(expected[key], rel=2e-3, abs=1e-7)
    for name, values in weights(family).items():
        torch.testing.assert_close(values, uninterrupted[1][name], rtol=1e-3, atol=2e-4)


def test_gradient_checkpointing_is_the_same_training(
    new_family: NewFamily, tiny_data: TrainingData, uninterrupted: Uninterrupted
) -> None:
    family = new_family()
    family.checkpoint_gradients(True)
    trained(family, tiny_data)
    for name, values in weights(family).items():
        torch.testing.assert_close(values, uninterrupted[1][name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_16_bit_denoiser_is_trained(dtype: torch.dtype, new_family: NewFamily, tiny_data: TrainingData) -> None:
    """Outside the mask bit-identical, and the forget loss falls."""
    family = new_family()
    family.denoiser.to(dtype)
    before = weights(family)
    records = trained(family, tiny_data, config=SMALL.model_copy(update={"steps": 30, "forget_batch_size": 8}))
    losses = [record["forget_loss"] for record in records]
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])
    mask = random_mask(family)
    for name, after in weights(family).items():
        assert torch.equal(before[name][~mask[name]], after[~mask[name]]), f"{name}: a weight outside the mask moved"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_stopped_16_bit_run_goes_on_to_the_same_result(
    dtype: torch.dtype, new_family: NewFamily, tiny_data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the masters' low bits; and where first steps of float16 overflow, are left out, and halve the loss scale, with which
    the rest goes on."""
    monkeypatch.setattr("erase.train.FIRST_SCALE", 2.0**24)
    whole, stopped, resumed = new_family(), new_family(), new_family()
    for family in (whole, stopped, resumed):
        family.denoiser.to(dtype)
    trained(whole, tiny_data)
    run = run_on(stopped, tiny_data, tmp_path / "state", 100)
    while next(run)["step"] < 3:
        pass
    run.close()
    with safe_open(tmp_path / "state", "pt") as file:
        header = metadata_of(file)
    scale, taken = json.loads(header["loss_scale"])[0], int(header["taken"])
    if dtype == torch.float16:
        assert 1 <= taken < 3 and scale == 2.0**24 / 2 ** (3 - taken), "no step overflowed"
    else:
        assert (scale, taken) == (1, 3)
    list(run_on(resumed, tiny_data, tmp_path / "state", 100))
    assert same(weights(resumed), weights(whole))


def test_a_float16_gradient_that_overflows_is_left_out_and_the_scale_halved() -> None:
    scale = _LossScale(torch.nn.Linear(2, 2).half())
    assert scale.value == 4096
    assert scale.overflowed(torch.tensor(math.inf)) and scale.value == 2048
    assert not any(scale.overflowed(torch.tensor(1.0)) for _ in range(200))
    assert scale.value == 4096
    assert _LossScale(torch.nn.Linear(2, 2)).value == 1
    assert not _LossScale(torch.nn.Linear(2, 2)).overflowed(torch.tensor(math.inf)), "float32 has no scale to adapt"
