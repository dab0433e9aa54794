"""A run in words: what became of the concept, which weights might change, and what the base is called."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from erase.config import validate
from erase.methods import METHODS
from erase.run import run_provenance
from erase.telling import base_name, becomes, changed, fate, has_mask, hub_id, in_words, mask_in_words

ANCHORLESS = ("esd", "gradient_ascent", "forget_me_not", "scissorhands", "retrain")


def config_of(method: str = "salun", mask: str = "gradient", **settings: Any) -> Any:
    return validate({"concept": "dog", "method": {"name": method, **settings}, "saliency": {"method": mask}})


@pytest.mark.parametrize("method", METHODS)
def test_what_a_method_does_with_the_concept_is_said_as_it_is(method: str) -> None:
    """Remapped where it is, and else the method's own line; no anchor of the plan is told of in vain."""
    told = fate(config_of(method), "dog", ("cat",))
    if method in ANCHORLESS:
        assert told == f"How {method} forgets: {METHODS[method].line}."
        assert becomes(config_of(method), ("cat",)) == [] and in_words(config_of(method), ("cat",)) == "-"
    else:
        assert told == "“dog” was remapped to “cat”."
        assert becomes(config_of(method), ("cat",)) == ["cat"] and in_words(config_of(method), ("cat",)) == "cat"


@pytest.mark.parametrize(
    ("method", "settings", "anchors", "told", "short"),
    [
        ("salun", {"anchor": "none"}, (), "“dog” was remapped to the empty prompt.", "the empty prompt"),
        ("salun", {"relabel": "random_label"}, "abc", "“dog” was relabelled at random to one of 3 others.", "one of 3 others"),
        ("erasediff", {"target": "uniform"}, ("cat",), f"How erasediff forgets: {METHODS['erasediff'].line}.", "-"),
        ("uce", {}, ("a cat", "a rabbit"), "“dog” was remapped to “a cat”.", "a cat"),
    ],
)
def test_the_settings_that_decide_it(method: str, settings: dict[str, Any], anchors: Any, told: str, short: str) -> None:
    config = config_of(method, **settings)
    assert fate(config, "dog", anchors) == told and in_words(config, anchors).startswith(short)


@pytest.mark.parametrize("method", ["salun", "uce"])
def test_prompts_that_become_one_each_are_told_of_as_pairs(method: str) -> None:
    given = {"forget": ["a dog", "dogs"], "becomes": ["a cat", "cats"], "retain": ["a tree"]}
    for prompts in (given, {"each": {"dog": given}}):
        config = validate({"concept": "dog", "method": {"name": method}, "prompts": prompts})
        assert becomes(config, ("a cat", "cats")) == ["a cat", "cats"]
        assert in_words(config, ("a cat", "cats")) == "2 prompts, one each"
        assert (
            fate(config, "dog", ("a cat", "cats"))
            == "The 2 prompts for “dog” were remapped to one prompt each, such as “a cat”."
        )


PROOF = {"changed_outside_mask": 0, "changed_inside_mask_share": 0.5, "num_salient": 1000, "num_weights": 2000}


@pytest.mark.parametrize(
    ("method", "mask", "num_salient", "density", "told"),
    [
        ("salun", "gradient", 1000, "density 0.5", "weights changed outside the mask: 0; inside: 50.00 % of 1,000 (of 2,000)"),
        ("salun", "none", 2000, "no mask", "weights changed: 50.00 % of 2,000 (no mask)"),
        ("retrain", "gradient", 2000, "no mask", "weights changed: 50.00 % of 2,000 (no mask)"),
        (
            *("esd", "none", 1000, "no mask"),
            "weights changed outside what the method edits: 0; inside: 50.00 % of 1,000 (of 2,000; no mask)",
        ),
    ],
)
def test_of_a_run_without_a_mask_none_is_told(method: str, mask: str, num_salient: int, density: str, told: str) -> None:
    config = config_of(method, mask)
    assert mask_in_words(config) == density and has_mask(config) is (density != "no mask")
    results = {"density": 0.5 if has_mask(config) else 1.0, "audit": PROOF | {"num_salient": num_salient}}
    assert changed(results) == told


def test_a_base_on_the_hub_has_its_id_and_one_that_lies_here_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "sd").mkdir(parents=True)
    (tmp_path / "sd.safetensors").touch()
    assert hub_id("CompVis/stable-diffusion-v1-4") == base_name("CompVis/stable-diffusion-v1-4")
    for local, name in (("models/sd", "sd"), (str(tmp_path / "models/sd"), "sd"), ("sd.safetensors", "sd.safetensors")):
        assert hub_id(local) is None and base_name(local) == name
    assert hub_id("emoji") is None and base_name("emoji") == "emoji" and base_name(".") == tmp_path.name
    config = config_of().model_copy(update={"model": str(tmp_path / "models/sd")})
    plan = SimpleNamespace(config=config, concept=SimpleNamespace(name="dog"))
    run: Any = SimpleNamespace(plan=plan, base_hash="0")
    assert run_provenance(run)["model"] == "sd", "headers of masks and patches go to others"
