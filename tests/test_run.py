"""A run's stages in this process: which weights may change, what is measured on which model, and what makes a stage anew."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import STAGES

from erase.data import TrainingData
from erase.folder import Folder
from erase.methods import METHODS
from erase.methods.base import Config, Step
from erase.plan import Plan, plan
from erase.quiet import Silent
from erase.recipes import resolve
from erase.run import Run, _mask_stage, execute, forget_losses
from erase.saliency import load_mask, saliency
from erase.salient import SalientWeights
from eval.detectors import EmojiJudge
from eval.generate import generate
from eval.pictures import read_manifest, read_pixels
from pipelines.load import load, model_hash
from pipelines.stable_diffusion import StableDiffusion


@pytest.mark.parametrize(("method", "inside"), [("esd", ".attn2."), ("salun", "")])
def test_the_mask_is_the_top_share_of_the_settings_within_the_methods_scope(
    method: str, inside: str, new_family: Callable[[], StableDiffusion], tiny_data: TrainingData, tmp_path: Path
) -> None:
    """By a full sort of the saliency on another copy: 0.3 of the weights whose name says they are in reach, two rounds,
    guidance 2, seed 5; no weight elsewhere, and in the file what is in memory. Without a ranking: all in reach."""
    settings = ["saliency.density=0.3", "saliency.guidance_scale=2", "saliency.rounds=2", "seed=5"]

    def mask_of(*more: str) -> dict[str, torch.Tensor]:
        config, family = resolve({"concept": "dog", "method.name": method}, [*settings, *more]), new_family()
        run = Run(plan(config, family), family, Folder(tmp_path / str(len(more)), config), Silent(), "base")
        run.folder.stages["generate"] = {"files": {}}
        mask = _mask_stage(run, tiny_data)
        kept, _ = load_mask(run.folder.path / "mask.safetensors")
        assert mask.keys() == kept.keys() and all(torch.equal(mask[name], kept[name]) for name in mask)
        return mask

    other = new_family()
    scores = saliency(other.denoiser, forget_losses(other, tiny_data, 2, 24, 5, 2.0))
    reached = [values.flatten() for name, values in scores.items() if inside in name]
    lowest = torch.cat(reached).sort(descending=True).values[int(0.3 * sum(map(len, reached))) - 1]
    for name, chosen in mask_of().items():
        assert torch.equal(chosen, (scores[name] >= lowest) & torch.tensor(inside in name)), name
    for name, chosen in mask_of("saliency.method=none").items():
        assert chosen.all() == chosen.any() == (inside in name), name


def test_a_stage_is_made_anew_for_another_base_version_or_input_and_not_for_the_same(
    tiny_family: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = resolve({"concept": "dog"}, [])
    planned = plan(config, tiny_family)

    def is_done(base: str, inputs: str) -> bool:
        run = Run(planned, tiny_family, Folder(tmp_path / "run", config), Silent(), base)
        with run.stage("train", [inputs], ["config.yaml"], 1) as bar:
            return bar is None

    assert [is_done(*key) for key in ("aa", "aa", "ba", "ba", "bb", "bb")] == [False, True] * 3
    monkeypatch.setattr("erase.run.__version__", "0")
    assert not is_done("b", "b")


@dataclass
class Spoilt:
    """A run on the embedded model whose method breaks every picture."""

    folder: Path
    results: dict[str, Any]
    again: Callable[[], dict[str, Any]]


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spoilt]:
    """Two objects, whose `method` adds 1000 to the four biases that a prediction ends with."""

    def spoil(config: Config, step: Step, salient: SalientWeights) -> dict[str, float]:
        for name in salient.values:
            salient.set_master(name, salient.master(name) + 1000)
        return {"loss": 0.0}

    settings = ["data.num_forget=2", "data.num_retain=1", "data.num_inference_steps=1", "saliency.method=none"]
    settings += ["evaluation.num_forget=2", "evaluation.num_inference_steps=2"]
    config = resolve({"concept": ["dog", "church"], "method.name": "uce"}, settings)
    folder, family = tmp_path_factory.mktemp("spoilt") / "run", load("emoji")
    planned: Plan = plan(config, family)
    planned = replace(planned, retain_evaluation=planned.retain_evaluation[::33])

    def again() -> dict[str, Any]:
        return execute(planned, family, folder, Silent(), model_hash("emoji"))

    with pytest.MonkeyPatch.context() as patch:
        broken = replace(METHODS["uce"], start=spoil, scope=lambda *_: {"conv_out.bias"})
        patch.setitem(METHODS, "uce", broken)
        yield Spoilt(folder, again(), again)


def test_each_models_figures_are_of_the_pictures_that_it_draws(spoilt: Spoilt, tmp_path: Path) -> None:
    """Both folders of pictures are what the base, and the exported model read back from its folder, draw; every concept's
    share is what the judge sees in those. The broken model shows nothing, and the gate holds it against the base."""
    results = spoilt.results
    assert results["erased"]["forget_accuracy"] == 0 < results["base"]["forget_accuracy"]
    assert (results["audit"]["num_salient"], results["audit"]["changed_inside_mask_share"]) == (4, 1.0)
    values = {check["name"]: check["value"] for check in results["collapse"]["checks"]}
    assert not results["collapse"]["passed"] and values["anything"] < 0.5 > values["diversity"]
    for role, model in (("base", "emoji"), ("erased", str(spoilt.folder / "model"))):
        pictures = read_manifest(spoilt.folder / "pictures" / role)
        requests = [picture.request() for picture in pictures]
        drawn = generate(load(model), requests, tmp_path / role, model=model, batch_size=48)
        assert [picture.sha256 for picture in drawn] == [picture.sha256 for picture in pictures]
        assert {picture.model for picture in pictures} == {model_hash(model)}
        seen = EmojiJudge().read([read_pixels(tmp_path / role / picture.file) for picture in drawn])
        shown = [[row["object"] == name for row in seen[k : k + 2]] for k, name in ((0, "dog"), (2, "church"))]
        told = [(row["name"], row[role]["forget_accuracy"], row["n"]) for row in results["concepts"]]
        assert told == [("dog", sum(shown[0]) / 2, 2), ("church", sum(shown[1]) / 2, 2)]
        assert results[role]["forget_accuracy"] == sum(map(sum, shown)) / 4


def test_another_judge_judges_again(spoilt: Spoilt, monkeypatch: pytest.MonkeyPatch) -> None:
    assert spoilt.again()["skipped"] == list(STAGES)
    card = EmojiJudge.card
    monkeypatch.setattr(EmojiJudge, "card", lambda judge: card(judge) | {"sha256": "another's"})
    assert spoilt.again()["skipped"] == ["generate", "saliency", "train", "export"]
