"""The model card and the report of runs whose results are written by hand: base, license, class, mask, fate, audit."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from PIL import Image

from erase.config import validate
from erase.telling import COLLAPSED
from eval.card import card_facts
from eval.measure import Share
from eval.report import write_report

SHARE = Share(3, 4).record()
SIDE = {"forget_accuracy": 0.25, "ira": 0.75, "cra": 0.75, "n": 4, "by_name": {}}
SIDE |= {"intervals": dict.fromkeys(("forget", "ira", "cra", "none_retained", "none_forget"), SHARE)}
HELD_OUT = {"objects": 1.0, "styles": 1.0, "none": 1.0, "n": 8}
RESULTS = {
    "concept": "dog",
    "anchors": ["cat"],
    "model": "emoji",
    "method": "salun",
    "density": 0.5,
    "patch": True,
    "seed": 0,
    "base": SIDE,
    "erased": SIDE,
    "collapse": None,
    "concepts": [{"name": "dog", "anchors": ["cat"], "base": SIDE, "erased": SIDE, "n": 4}],
    "audit": {"changed_outside_mask": 0, "changed_inside_mask_share": 1.0, "num_salient": 1, "num_weights": 2},
    "density_by_block": {"conv_in": 0.5},
    "detector": {"name": "judge", "sha256": "0" * 64, "held_out_accuracy": HELD_OUT},
    "seconds": {"train": 1.0},
    "peak_rss_gb": 1.0,
    "machine": {"threads": 1, "processor": "x"},
}


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes the report and the card of a run with this config and these results; their texts."""
    monkeypatch.setattr("eval.report.grids", lambda *_: [])

    def write(values: dict[str, Any], pipeline: str = "StableDiffusionPipeline", **results: Any) -> tuple[str, str]:
        config = validate({"concept": "dog", **values})
        run = tmp_path / "run"
        (run / "model").mkdir(parents=True, exist_ok=True)
        (run / "model" / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
        own = {"model": config.model, "method": config.method.name, **results}
        (run / "results.json").write_text(json.dumps(RESULTS | own))
        (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "forget_loss": 1.0}) + "\n")
        plan: Any = SimpleNamespace(concept=SimpleNamespace(name="dog"), config=config)
        write_report(run, plan)
        return (run / "report.html").read_text(), (run / "README.md").read_text()

    return write


def front(card: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return values


def test_the_card_of_a_model_from_the_hub_names_it_and_its_pipeline(written: Any) -> None:
    _, card = written({"model": "owner/base-xl", "method": {"name": "esd"}}, "StableDiffusionXLPipeline")
    assert front(card)["base_model"] == "owner/base-xl" and front(card)["pipeline_tag"] == "text-to-image"
    assert "esd" in front(card)["tags"] and "salun" not in card and "license" not in front(card)
    assert '`StableDiffusionXLPipeline.from_pretrained("model")`' in card and "--to owner/base-xl" in card
    assert "derivatives of owner/base-xl" in card and "No license is stated here" in card
    assert "safety checker" not in card and "safety checker" not in written({})[1]
    _, card = written({"model": "owner/base"}, "StableDiffusionPipeline")
    assert "A safety checker is not part of it" in card and "\n- `patch.safetensors`" in card


@pytest.mark.parametrize(
    ("lines", "stated"),
    [
        ("license: openrail++", {"license": "openrail++"}),
        (
            "license: other\nlicense_name: my terms\nlicense_link: https://example.org/terms",
            {"license": "other", "license_name": "my terms", "license_link": "https://example.org/terms"},
        ),
        ("license: other\nlicense_link: LICENSE.md", {"license": "other"}),
        ("license: [mit]", {}),
        ('license: "mit\\ntags: [x]"', {}),
        ("tags: [x]", {}),
        ("license: [", {}),
        (None, {}),
    ],
)
def test_the_license_that_the_bases_own_card_states_is_taken_over(
    lines: str | None, stated: dict[str, str], written: Any, tmp_path: Path
) -> None:
    """And nothing of the path to the base's folder is told."""
    base = tmp_path / "sd"
    base.mkdir()
    (base / "README.md").write_text("no front matter" if lines is None else f"---\n{lines}\n---\n# Base\n")
    _, card = written({"model": str(base)})
    assert {key: value for key, value in front(card).items() if key.startswith("license")} == stated
    assert front(card).keys() - stated.keys() == {"library_name", "pipeline_tag", "tags"}
    assert str(tmp_path) not in card and card.split("---\n")[2].startswith("# sd without “dog”") and "--to BASE " in card
    assert ("No license is stated here" in card) is (not stated)
    assert not stated or f"license `{stated.get('license_name', stated['license'])}`" in card


def test_the_license_of_a_base_on_the_hub_is_that_of_its_cached_card(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--owner--sd" / "snapshots" / "a"
    snapshot.mkdir(parents=True)
    (snapshot / "README.md").write_text("---\nlicense: mit\n---\n")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("a")
    config = validate({"concept": "dog", "model": "owner/sd", "load": {"cache_dir": str(tmp_path)}})
    assert card_facts(tmp_path, config)["license"] == "mit"
    other = config.model_copy(update={"load": config.load.model_copy(update={"revision": "v2"})})
    assert card_facts(tmp_path, other)["license"] is None


def test_the_embedded_model_is_no_base_on_the_hub_and_has_its_license(written: Any) -> None:
    _, card = written({})
    assert "base_model" not in front(card) and front(card)["license"] == "apache-2.0" and "--to emoji " in card


WHOLE = RESULTS["audit"] | {"num_salient": 2}  # type: ignore[operator]


@pytest.mark.parametrize(
    ("values", "results", "there", "not_there"),
    [
        ({}, {}, ["density 0.5", "was remapped to “cat”", "no weight outside the mask changed", "Where the mask is"], []),
        (
            {"method": {"name": "esd"}, "saliency": {"method": "none"}},
            {"density": 1.0},
            ["no mask", "How esd forgets: ", "every weight that the method edits could change", "What the method edits"],
            ["density 0.5", "cat", "outside the mask", "Where the mask is", "Salient"],
        ),
        (
            {"saliency": {"method": "none"}},
            {"audit": WHOLE, "density": 1.0, "anchors": []},
            ["There is no mask: every weight could change.", "was remapped to the empty prompt"],
            ["density 0.5", "outside the mask", "one of 0", "Where the mask is", "What the method edits"],
        ),
        (
            {"method": {"name": "retrain"}},
            {"audit": WHOLE, "density": 1.0, "patch": False},
            ["no mask", "trained from scratch without the concept"],
            ["density 0.5", "outside the mask", "remapped"],
        ),
        ({}, {"audit": WHOLE | {"changed_outside_mask": 3}}, ["Weights outside the mask changed"], ["Proof"]),
    ],
)
def test_report_and_card_tell_of_the_mask_and_the_concept_what_is_so(
    values: dict[str, Any], results: dict[str, Any], there: list[str], not_there: list[str], written: Any
) -> None:
    html, card = written(values, **results)
    page = html.split("<h2>Config</h2>")[0].replace("&#39;", "'")
    for words in there:
        assert words in page
    for words in not_there:
        assert words not in page and words not in card
    assert ("density 0.5" in card) is ("density 0.5" in page)


def test_of_several_concepts_a_table_says_what_they_became_if_the_method_makes_anything_of_them(written: Any) -> None:
    rows = [RESULTS["concepts"][0] | {"name": name} for name in ("dog", "church")]  # type: ignore[index,operator]
    html, _ = written({}, concepts=rows)
    assert "<th>became</th>" in html and "<td>church</td><td>cat</td>" in html and "remapped" not in html
    html, _ = written({"method": {"name": "esd"}}, concepts=rows)
    assert "<th>became</th>" not in html and "<td>church</td><td>25.0 %" in html and "How esd forgets" in html


def test_a_collapsed_model_is_called_so_on_its_card(written: Any) -> None:
    check = {"name": "drift", "meaning": "how far", "value": 0.9, "limit": 0.5, "passed": False}
    html, card = written({}, collapse={"passed": False, "checks": [check]})
    assert (
        f"<b>{COLLAPSED}</b>" in html
        and f"**{COLLAPSED}**" in card
        and "| unlearning accuracy (UA) | 75.0 % | 75.0 % | 4 |" in card
    )
    assert "Collapsed" not in written({}, collapse={"passed": True, "checks": []})[1]


def test_the_card_shows_the_models_pictures_without_the_concept_and_none_of_the_base(
    written: Any, audited_run: Any, tmp_path: Path
) -> None:
    written({})
    audited_run(tmp_path / "run", seen=(True, False, False))
    _, card = written({})
    shown = re.findall(r"!\[\w+\]\(([^)]*)\)", card)
    assert shown == [f"audit/dog/prompts/model/000{k}.png" for k in (1, 2)]
    assert "in which the concept was not seen" in card and "try 1" not in card
    with Image.open(tmp_path / "run" / shown[0]) as picture:
        assert picture.size == (8, 8)
    audited_run(tmp_path / "run", seen=(True,))
    card = written({})[1]
    assert "## Audit" in card and "![" not in card and "The strongest attack" not in card
