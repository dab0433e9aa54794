"""The forget and retain sets: which prompts, which pictures, and the file they are kept in."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from erase.concepts import Concept, Prompt, alternatives
from erase.data import DataPlan, TrainingData, load_data, make_data, plan_data, plan_given
from erase.saliency import save_mask
from pipelines.load import EMOJI_VOCABULARY as VOCABULARY
from pipelines.stable_diffusion import StableDiffusion

CONCEPTS = {
    "object": (Concept("dog", "object", object="dog"), "cat"),
    "style": (Concept("neon", "style", style="neon"), "3d"),
    "composition": (Concept("dog, neon style", "composition", "dog", "neon"), "cat"),
}
KINDS = pytest.mark.parametrize("kind", CONCEPTS)


def planned(kind: str, remap: bool, num_anchor: int = 10) -> tuple[Concept, tuple[str, ...], DataPlan]:
    concept, anchor = CONCEPTS[kind]
    others = (anchor,) if remap else alternatives(concept, VOCABULARY)
    return concept, others, plan_data(concept, VOCABULARY, others, 24, 60, num_anchor)


@KINDS
@pytest.mark.parametrize("remap", [True, False])
def test_forget_prompts_ask_for_the_concept_and_all_others_do_not(kind: str, remap: bool) -> None:
    concept, others, plan = planned(kind, remap)
    assert len(plan.forget) == len(plan.relabelled) == 24
    assert all(concept.matches(prompt) for prompt in plan.forget)
    assert not any(concept.matches(prompt) for prompt in plan.retain)
    for row in plan.relabelled:
        assert not any(concept.matches(prompt) for prompt in row)
        assert [prompt.style if kind == "style" else prompt.object for prompt in row] == list(others)


@KINDS
@pytest.mark.parametrize("remap", [True, False])
def test_dual_prompts_ask_for_the_concept_in_the_retain_prompts_words(kind: str, remap: bool) -> None:
    """They differ from their retain prompt in the concept's own domain alone: what training maps onto each other."""
    concept, others, plan = planned(kind, remap)
    assert len(plan.dual) == len(plan.retain) == 60 + (10 if remap else 0)
    pairs = [(kept, dual) for kept, dual in zip(plan.retain, plan.dual, strict=True) if dual]
    assert pairs
    for kept, dual in pairs:
        assert concept.matches(dual)
        assert dual.template == kept.template
        if kind == "style":
            assert dual.object == kept.object and kept.style in others
        else:
            assert dual.style == kept.style and kept.object in others


@KINDS
def test_with_one_anchor_its_pictures_come_first_and_are_the_duals(kind: str) -> None:
    _, others, plan = planned(kind, remap=True)
    assert plan.num_anchor == 10
    assert all(others[0] in (prompt.object, prompt.style) for prompt in plan.retain[:10])
    assert [dual is not None for dual in plan.dual] == [True] * 10 + [False] * 60


def test_with_random_labels_every_retain_picture_that_can_be_meant_is_a_dual() -> None:
    """For an object all; for an object in a style those in that style, for a style those in another style."""
    for kind, stands in {
        "object": lambda prompt: True,
        "composition": lambda prompt: prompt.style == "neon" and prompt.object != "dog",
        "style": lambda prompt: prompt.style is not None,
    }.items():
        _, _, plan = planned(kind, remap=False)
        assert [dual is not None for dual in plan.dual] == [stands(prompt) for prompt in plan.retain]
        assert plan.num_anchor == 0


@pytest.mark.parametrize(
    ("forget", "becomes", "relabelled", "duals"),
    [
        ("a", "x", ["x", "x", "x"], ["a", None, None, "a", None]),
        ("ab", "xy", ["x", "y", "x"], ["a", None, "b", "a", None]),
        ("ab", "yx", ["y", "x", "y"], ["b", None, "a", "b", None]),
        ("ab", "x", ["x", "x", "x"], ["a", None, None, "b", None]),
        ("ab", "xyz", ["xyz", "xyz", "xyz"], ["a", None, "a", "b", None]),
        ("abc", "xyx", ["x", "y", "x"], ["a", None, "b", "c", None]),
    ],
)
def test_prompts_given_by_hand_go_round(forget: str, becomes: str, relabelled: list[str], duals: list[str | None]) -> None:
    """As many to become as to forget are pairs; else each can become any. A kept prompt stands for one that becomes it."""
    plan = plan_given("n", tuple(forget), tuple(becomes), ("x", "k", "y"), 3, 5)
    assert [prompt.text for prompt in plan.forget] == [forget[k % len(forget)] for k in range(3)]
    assert ["".join(prompt.text for prompt in row) for row in plan.relabelled] == relabelled
    assert [prompt.text for prompt in plan.retain] == ["x", "k", "y", "x", "k"]
    assert [prompt.text for prompt in plan.alone] == ["n", "n", "n"]
    assert [dual and dual.text for dual in plan.dual] == duals


PLAN = plan_data(CONCEPTS["object"][0], VOCABULARY, ("cat",), 4, 5, 3)
SETTINGS = {"forget_guidance_scale": 2.0, "retain_guidance_scale": 1.0, "num_inference_steps": 2, "batch_size": 8}


def made(family: StableDiffusion, seed: int = 0, **changes: object) -> TrainingData:
    return make_data(family, PLAN, seed=seed, **(SETTINGS | changes))


def tensors(data: TrainingData) -> dict[str, Tensor]:
    return {key: value for key, value in vars(data).items() if key != "table"} | data.table


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_the_batch_size_does_not_change_the_pictures(
    batch_size: int, tiny_family: StableDiffusion, tiny_data: TrainingData
) -> None:
    for name, values in tensors(made(tiny_family, batch_size=batch_size)).items():
        torch.testing.assert_close(values, tensors(tiny_data)[name], rtol=1e-4, atol=1e-4)


def test_the_same_seed_gives_the_same_pictures_and_another_seed_others(
    tiny_family: StableDiffusion, tiny_data: TrainingData
) -> None:
    again, other = tensors(made(tiny_family)), tensors(made(tiny_family, seed=1))
    assert all(torch.equal(values, again[name]) for name, values in tensors(tiny_data).items())
    for name in ("forget_latents", "retain_latents"):
        for picture in tensors(tiny_data)[name]:
            assert ((picture - other[name]).abs().amax((1, 2, 3)) > 0.1).all()


def test_no_two_pictures_are_the_same(tiny_data: TrainingData) -> None:
    pictures = torch.cat([tiny_data.forget_latents, tiny_data.retain_latents]).flatten(1)
    assert (torch.cdist(pictures, pictures) + torch.eye(len(pictures)) * 9 > 0.1).all()


def test_the_two_sets_share_no_noise(tiny_family: StableDiffusion) -> None:
    """Asked for with the same prompt, their pictures still differ."""
    plan = plan_given("dog", ("a dog",), ("a cat",), ("a dog",), 3, 3)
    data = make_data(tiny_family, plan, seed=0, **SETTINGS | {"forget_guidance_scale": 1.0})
    assert torch.cdist(data.forget_latents.flatten(1), data.retain_latents.flatten(1)).min() > 0.1


def test_guidance_is_that_of_each_set(tiny_family: StableDiffusion, tiny_data: TrainingData) -> None:
    changed = made(tiny_family, forget_guidance_scale=4.0)
    assert (changed.forget_latents - tiny_data.forget_latents).abs().max() > 1e-3
    assert torch.equal(changed.retain_latents, tiny_data.retain_latents)
    changed = made(tiny_family, retain_guidance_scale=4.0)
    assert torch.equal(changed.forget_latents, tiny_data.forget_latents)
    assert (changed.retain_latents - tiny_data.retain_latents).abs().max() > 1e-3


def test_rows_of_the_table_are_the_prompts_embeddings(tiny_family: StableDiffusion, tiny_data: TrainingData) -> None:
    def embeds(prompts: list[Prompt]) -> Tensor:
        return tiny_family.encode_prompts([prompt.text for prompt in prompts])["prompt_embeds"]

    def rows(index: Tensor) -> Tensor:
        return tiny_data.conditioning(index)["prompt_embeds"]

    torch.testing.assert_close(rows(tiny_data.forget_prompt), embeds(PLAN.forget))
    torch.testing.assert_close(rows(tiny_data.retain_prompt), embeds(PLAN.retain))
    torch.testing.assert_close(rows(tiny_data.forget_relabel[:, 0]), embeds([row[0] for row in PLAN.relabelled]))
    torch.testing.assert_close(rows(tiny_data.retain_dual[tiny_data.dual_index]), embeds([p for p in PLAN.dual if p]))
    torch.testing.assert_close(rows(tiny_data.empty_prompt)[None], embeds([Prompt("")]))
    assert tiny_data.forget_alone is not None
    torch.testing.assert_close(rows(tiny_data.forget_alone), embeds([Prompt("a dog")] * 4))
    assert tiny_data.dual_index.tolist() == [0, 1, 2]
    assert tiny_data.retain_dual[3:].tolist() == [-1] * 5
    table = tiny_data.table["prompt_embeds"]
    assert len({tuple(row.flatten().tolist()) for row in table}) == len(table), "a prompt is embedded twice"


def test_the_concept_alone_adds_a_prompt_and_changes_no_other(tiny_family: StableDiffusion, tiny_data: TrainingData) -> None:
    """Asked for by a word that no other prompt has: one more row at the end of the table, everything else as it was."""
    plan = dataclasses.replace(PLAN, alone=[Prompt("zebra")] * 4)
    other = make_data(tiny_family, plan, seed=0, **SETTINGS)
    before, after = tensors(tiny_data), tensors(other)
    size = len(before["prompt_embeds"])  # "a dog" is a forget prompt too
    assert other.forget_alone is not None and other.forget_alone.tolist() == [size] * 4
    for name in before:
        if name in ("prompt_embeds", "concept_tokens", "end_tokens"):
            torch.testing.assert_close(after[name][:size], before[name][:size])
        elif name != "forget_alone":
            assert torch.equal(after[name], before[name]), name


def test_progress_counts_every_picture(tiny_family: StableDiffusion) -> None:
    counts: list[int] = []
    make_data(tiny_family, PLAN, seed=0, **SETTINGS | {"batch_size": 3}, progress=counts.append)
    assert sum(counts) == len(PLAN.forget) + len(PLAN.retain) == 12
    assert max(counts) == 3


def test_a_stopped_drawing_goes_on_behind_its_finished_batches(tiny_family: StableDiffusion, tmp_path: Path) -> None:
    """Batches of 3 of 4 + 8 pictures: 2 and 3 of them. Stopped in the third, the two before are not drawn again."""
    settings = {"seed": 0, **SETTINGS | {"batch_size": 3}}
    whole, generate, drawn = make_data(tiny_family, PLAN, **settings), tiny_family.generate, []

    def stopping(prompts: list[str], *rest: Any, **more: Any) -> Tensor:
        drawn.append(len(prompts))
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return generate(prompts, *rest, **more)

    tiny_family.generate = stopping  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        make_data(tiny_family, PLAN, **settings, kept=tmp_path)
    counts: list[int] = []
    again = make_data(tiny_family, PLAN, **settings, kept=tmp_path, progress=counts.append)
    assert drawn == [3, 1, 3, 3, 3, 2] and sum(counts) == 12
    assert all(torch.equal(values, tensors(again)[name]) for name, values in tensors(whole).items())
    next(tmp_path.glob("*.safetensors")).write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"is damaged .*: delete it, and its pictures are drawn again"):
        make_data(tiny_family, PLAN, **settings, kept=tmp_path)


def test_saved_data_is_loaded_as_it_was(tiny_data: TrainingData, tmp_path: Path) -> None:
    tiny_data.save(tmp_path / "data.safetensors", {"base": "abc"})
    loaded = load_data(tmp_path / "data.safetensors")
    assert [field.name for field in dataclasses.fields(loaded)] == list(vars(loaded))
    assert tensors(loaded).keys() == tensors(tiny_data).keys()
    for name, values in tensors(tiny_data).items():
        assert torch.equal(values, tensors(loaded)[name]) and values.dtype == tensors(loaded)[name].dtype, name


def test_data_without_any_dual_is_saved_too(tiny_data: TrainingData, tmp_path: Path) -> None:
    data = dataclasses.replace(tiny_data, dual_index=torch.empty(0, dtype=torch.long))
    data.save(tmp_path / "data", {})
    assert load_data(tmp_path / "data").dual_index.shape == (0,)


@pytest.mark.parametrize("kind", ["a mask", "truncated", "text", "missing"])
def test_another_file_is_refused(kind: str, tiny_data: TrainingData, tmp_path: Path) -> None:
    path = tmp_path / "file"
    if kind == "a mask":
        save_mask({"w": torch.ones(3, dtype=torch.bool)}, path, {})
    elif kind == "truncated":
        tiny_data.save(path, {})
        path.write_bytes(path.read_bytes()[:-1])
    elif kind == "text":
        path.write_text("concept: dog\n" * 20)
    with pytest.raises(ValueError, match="is not a data set of this tool"):
        load_data(path)
