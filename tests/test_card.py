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
from erase.hub import audit_files, card_for_hub
from erase.report_again import report_again
from erase.telling import COLLAPSED
from eval.audit_gate import Line
from eval.audit_report import card_with_audit, read_audit
from eval.card import card_facts
from eval.charts import bars, lines
from eval.measure import Share
from eval.report import write_report
from eval.results import Figure, Plan, Results, Row, Source
from pipelines.load import model_hash

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
    assert "<th>became</th>" in html and "<td><bdi>church</bdi></td><td><bdi>cat</bdi></td>" in html and "remapped" not in html
    html, _ = written({"method": {"name": "esd"}}, concepts=rows)
    assert "<th>became</th>" not in html and "<td><bdi>church</bdi></td><td>25.0 %" in html and "How esd forgets" in html


LABEL = "No known object or no known style, retained prompts"


def test_report_and_card_say_which_weights_they_are_about(written: Any, tmp_path: Path) -> None:
    (tmp_path / "run" / "model" / "unet").mkdir(parents=True)
    (tmp_path / "run" / "model" / "unet" / "x.safetensors").write_bytes(b"weights")
    (tmp_path / "run" / "config.yaml").write_text("versions: {erase: 0.0.7, torch: 2.9}\n")
    sha256 = model_hash(str(tmp_path / "run" / "model"))
    html, card = written({"model": "owner/sd", "load": {"revision": "v2"}}, base_sha256="b" * 64)
    for text in (html, card):
        assert f"Model {sha256[:16]}, base {'b' * 16} (revision v2); made by erase 0.0.7, torch 2.9; written 20" in text
    assert "same prompts and seeds" in html and LABEL in html and "None of the objects" not in html


def test_what_the_run_did_not_measure_is_taken_from_an_evaluation_of_its_model(
    written: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the folder that `erase eval` writes by default, where it is of these weights."""
    monkeypatch.chdir(tmp_path)
    html, card = written({}, detector=None)
    for text in (html.replace("<code>", "`").replace("</code>", "`").replace("<b>", "").replace("</b>", ""), card):
        assert "by the run itself; `erase eval` measures it, where a detector knows" in text and "no available" not in text
    assert "same prompts and seeds" not in html, "nothing was drawn"
    ua = Figure(value=0.9, low=0.8, high=0.95, n=50, interval="wilson")
    row = Row(key="ua", label="church | not seen", unit="share", better="higher", model=ua)
    own = model_hash(str(tmp_path / "run" / "model"))
    stages = {"train": {"inputs": "", "files": {}, "sources": {"base": "b" * 64}}}
    (tmp_path / "run" / "run.json").write_text(json.dumps({"config": {}, "stages": stages}))
    for folder, sha256, concept, base in (
        ("own", own, "dog", "b"),
        ("other", "0" * 64, "dog", "b"),
        ("of-neon", own, "neon", "b"),
        ("beside-another", own, "dog", "c"),
    ):
        sides = {"model": Source(name="run", sha256=sha256), "baseline": Source(name="base", sha256=base * 64)}
        about = Plan(suite=f"imagenette-{folder}", concepts=(concept,), **sides)
        results = Results(plan=about, prompts_sha256="", pictures={}, rows=(row,))
        (tmp_path / "runs" / "eval" / folder).mkdir(parents=True)
        (tmp_path / "runs" / "eval" / folder / "results.json").write_text(results.model_dump_json())
    html, card = written({}, detector=None)
    assert "| church &#124; not seen | -  | 90.0 % [80.0, 95.0] | 50 |" in card and "<td>church | not seen</td>" in html
    assert "imagenette-own" in card and "imagenette-own" in html
    assert all(f"imagenette-{other}" not in card + html for other in ("other", "of-neon", "beside-another"))


def test_a_failed_audit_is_said_before_anything_else(written: Any, audited_run: Any, tmp_path: Path) -> None:
    written({})
    audited_run(tmp_path / "run", seen=(True, False))
    html, _ = written({})
    assert html.index("Audit: <bdi>FAILED: prompts") < html.index('class="lead"')
    audited_run(tmp_path / "run", seen=(False, False))
    assert "Audit: <bdi>" not in written({})[0]


def test_a_concepts_name_breaks_no_table_and_turns_no_headline(written: Any, audited_run: Any, tmp_path: Path) -> None:
    written({})
    name = "a|b\u202e"
    line = Line(probe="prompts", status="PASS", reason="", concept=name)
    audited_run(tmp_path / "run", seen=(False,), concepts=(name, "dog"), lines=(line,))
    html, card = written({}, concept=name)
    assert "| prompts · a&#124;b\u202e | PASS |" in card
    assert f"· <bdi>{name}</bdi>" in html and "<h1><bdi>dog</bdi>, erased</h1>" in html


def test_the_card_gets_what_a_later_audit_says_whoever_wrote_it(written: Any, audited_run: Any, tmp_path: Path) -> None:
    """In place of the old section, at the end of a card that has none; a card without an audit of its model has none."""
    run = tmp_path / "run"
    without = written({})[1]
    audited_run(run, seen=(False, False))
    passed = written({})[1]
    assert card_with_audit(passed, run) == passed and "passed" in passed.lower()
    audited_run(run, seen=(True, False))
    failed = card_with_audit(passed, run)
    assert failed == written({})[1] and "FAILED: prompts" in failed and failed.count("## Audit") == 1
    added = card_with_audit(without, run)
    assert added.startswith(without.rstrip()) and "FAILED: prompts" in added and added.endswith("`audit/audit.html`.\n")
    (run / "audit" / "audit.json").unlink()
    assert "Audit" not in card_with_audit(failed, run)


@pytest.mark.parametrize("damaged", [False, True])
def test_an_audit_reaches_the_report_and_card_of_a_run_of_other_versions(
    damaged: bool, written: Any, audited_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where its results are of another form, the card alone."""
    run = tmp_path / "run"
    before, _ = written({})
    (run / "config.yaml").write_text("concept: dog\nversions: {erase: 0.0.1}\n")
    audited_run(run, seen=(True, False))
    if damaged:
        (run / "results.json").write_text(json.dumps({"concept": "dog", "detector": None}))
    monkeypatch.setattr("pipelines.load.load", lambda *_: None)
    planned = lambda config, _: SimpleNamespace(concept=SimpleNamespace(name="dog"), config=config)  # noqa: E731
    monkeypatch.setattr("erase.report_again.plan", planned)
    assert report_again(run, SimpleNamespace()) is not damaged  # type: ignore[arg-type]
    assert "FAILED: prompts" in (run / "README.md").read_text()
    assert ("FAILED: prompts" in (run / "report.html").read_text()) is not damaged
    assert not damaged or (run / "report.html").read_text() == before


def test_charts_have_a_name() -> None:
    assert 'role="img" aria-label="share &lt;kept&gt;"' in bars([("cat", [1.0])], caption="share <kept>")
    assert 'aria-label="bars: cat"' in bars([("cat", [1.0])])
    assert 'aria-label="loss by step"' in lines([1.0, 2.0], {"loss": [1.0, 0.5]}, "step")


def contrast(one: str, other: str) -> float:
    """WCAG's contrast of two colours."""

    def light(colour: str) -> float:
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    high, low = sorted((light(one), light(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_pass_and_fail_can_be_read_in_the_dark() -> None:
    page = (Path(__file__).parent.parent / "eval" / "page.html.j2").read_text()
    dark = re.search(r"prefers-color-scheme: dark\) \{ :root \{([^}]*)\}", page)
    assert dark
    for name in ("good", "bad"):
        colour = re.search(rf"--{name}: (#[0-9a-f]{{6}})", dark[1])
        assert colour and contrast(colour[1], "#1e1e1e") >= 4.5


def test_a_collapsed_model_is_called_so_on_its_card(written: Any) -> None:
    check = {"name": "drift", "meaning": "how far", "value": 0.9, "limit": 0.5, "passed": False}
    html, card = written({}, collapse={"passed": False, "checks": [check]})
    assert (
        f"<b>{COLLAPSED}</b>" in html
        and f"**{COLLAPSED}**" in card
        and "| unlearning accuracy (UA) | 25.0 % [4.6, 69.9] | 25.0 % [4.6, 69.9] | 4 |" in card
    )
    assert "Collapsed" not in written({}, collapse={"passed": True, "checks": []})[1]


def test_the_card_shows_first_what_the_strongest_attack_found_beside_the_base(
    written: Any, audited_run: Any, tmp_path: Path
) -> None:
    """Six tries: hits, marked, before misses; each over the base's picture of the same try, and none where they are private."""
    written({})
    run = tmp_path / "run"
    audited_run(run, seen=(False, False, True, False, True, False, False, False))
    card = written({})[1]
    table = card.splitlines()
    head, rule, *sides = table[next(k for k, line in enumerate(table) if "try 5" in line) :][:4]
    names = [name.strip() for name in head.strip("|").split("|")]
    assert names[:3] == ["", "**seen** try 3", "**seen** try 5"] and len(names) == 7
    assert not any("seen" in name for name in names[3:]) and rule == "|---" * 7 + "|"
    numbers = [int(name.split("try ")[1]) - 1 for name in names[1:]]
    assert len(set(numbers)) == 6
    for side, row in zip(("base", "model"), sides, strict=True):
        shown = re.findall(r"!\[(\w+)\]\(([^)]*)\)", row)
        assert shown == [(side, f"audit/dog/prompts/{side}/{k:04d}.png") for k in numbers]
        for _, name in shown:
            with Image.open(run / name) as picture:
                assert picture.size == (8, 8)
    audited_run(run, seen=(True,) * 8)
    card = written({})[1]
    assert card.count("**seen** try") == card.count("![model]") == card.count("![base]") == 6, "nothing is left out"
    audited_run(run, seen=(True, False), private=True)
    card = written({})[1]
    assert "FAILED: prompts" in card and "![" not in card and "not suitable for every reader" in card


def test_on_the_hub_a_dash_stands_for_pictures_that_show_the_concept(written: Any, audited_run: Any, tmp_path: Path) -> None:
    """The base's, and those in which it was seen; what was seen is still said."""
    written({})
    run = tmp_path / "run"
    audited_run(run, seen=(False, True))
    card = written({})[1]
    files = audit_files(run, read_audit(run), card)
    assert files == ["audit/audit.json", "audit/dog/prompts/model/0000.png"]
    table = card_for_hub(card, "owner/name", files).splitlines()
    rows = table[next(k for k, line in enumerate(table) if "try 2" in line) :][:4]
    assert rows == [
        "| | **seen** try 2 | try 1 |",
        "|---|---|---|",
        "| model | - | ![model](audit/dog/prompts/model/0000.png) |",
        "",
    ]
    (told,) = [line for line in table if "a dash stands in their place" in line]
    assert "base" not in told


def test_a_prompt_of_several_lines_breaks_no_table_of_the_card(written: Any, audited_run: Any, tmp_path: Path) -> None:
    written({})
    audited_run(tmp_path / "run", seen=(True,))
    for side in ("base", "model"):
        place = tmp_path / "run" / "audit" / "dog" / "prompts" / side / "outcome.json"
        place.write_text(json.dumps(json.loads(place.read_text()) | {"captions": ["a dog\n| on grass"]}))
    (row,) = [line for line in written({})[1].splitlines() if "**seen** a dog" in line]
    assert row == "| | **seen** a dog   on grass |"
