"""Evaluations side by side: which column is which, what its figures rest on, and a warning where they do not compare."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from eval.compare import columns, facts, names_of, page, text, warnings
from eval.results import Figure, Plan, Results, Row, Source


def evaluation(folder: Path, **more: Any) -> Path:
    """An evaluation's folder; `more` goes over the plan's settings, its base's hash, and the results."""
    one = Figure(value=0.5, low=0.4, high=0.6, n=24, interval="wilson")
    plan = Plan(
        suite="prompts",
        model=Source(name="x", sha256="0" * 64),
        baseline=Source(name="sd", sha256=more.pop("base", "1" * 64)),
        settings={"steps": 50, "guidance": 7.5, "seed": 5000} | more.pop("settings", {}),
    )
    values: dict[str, Any] = {"plan": plan, "prompts_sha256": "2" * 64, "sampling_sha256": "3" * 64}
    values |= {"pictures": {"model": 48, "base": 48}, "detectors": ({"name": "NudeNet 3.4.2", "sha256": "4" * 64},)}
    values |= {"rows": (Row(key="ua", label="UA", unit="share", better="higher", base=one, model=one),)}
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(Results(**values | more).model_dump_json())
    return folder


def run(folder: Path, evaluation: dict[str, Any] | None = None) -> Path:
    """A run's folder with the figures of its own evaluation."""
    shares = {
        "base": {"forget": (24, 24), "ira": (45, 48), "cra": (40, 48)},
        "erased": {"forget": (3, 24), "ira": (36, 48), "cra": (12, 48)},
    }
    record = {"audit": {}, "concept": "dog", "model": "emoji", "base_sha256": "1" * 64, "collapse": None}
    record |= {"detector": {"name": "emoji judge", "sha256": "5" * 64}}
    for side, counts in shares.items():
        intervals = {key: {"value": count / n, "n": n} for key, (count, n) in counts.items()}
        record[side] = {"n": 48, "intervals": intervals}
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(record))
    if evaluation is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump({"concept": "dog", "evaluation": evaluation}))
    return folder


def test_a_runs_figures_are_those_of_its_own_sides_and_ua_is_what_is_no_longer_seen(tmp_path) -> None:
    """The concept is in 24 of 24 pictures of the base and in 3 of 24 of the model: UA 0 and 21 / 24."""
    (column,) = columns([run(tmp_path / "a")])
    found = {row.key: (row.base and row.base.value, row.model and row.model.value) for row in column.rows}
    assert found == {"ua": (0.0, 0.875), "ira": (0.9375, 0.75), "cra": (pytest.approx(40 / 48), 0.25)}
    shown = text([column])
    assert [shown.count(f"{value} %") for value in ("87.5", "93.8", "75.0", "83.3", "25.0")] == [1] * 5
    ua = next(row for row in column.rows if row.key == "ua")
    assert ua.model and ua.model.low is not None and ua.model.high is not None and ua.model.low < 0.875 < ua.model.high


def test_a_column_is_named_so_that_it_is_known_again(tmp_path, monkeypatch) -> None:
    one, other = evaluation(tmp_path / "a" / "dog"), evaluation(tmp_path / "b" / "dog")
    apart = evaluation(tmp_path / "b" / "cat")
    monkeypatch.chdir(tmp_path)
    assert names_of([Path("a/dog/results.json"), Path("b/dog"), Path("b/cat/results.json")]) == ["a/dog", "b/dog", "cat"]
    assert [column.name for column in columns([one / "results.json", other, apart])] == [str(one), str(other), "cat"]
    monkeypatch.chdir(one)
    assert names_of([Path(), other]) == [".", str(other)] and names_of([Path(), apart]) == ["dog", "cat"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({}, None),
        ({"prompts_sha256": "9" * 64}, "not the same prompts and seeds"),
        ({"base": "9" * 64}, "not the same base in every column"),
        ({"settings": {"steps": 20}, "sampling_sha256": "9" * 64}, "not the same sampler steps in every column: 50, 20"),
        ({"settings": {"guidance": 3.0}}, "not the same guidance in every column: 7.5, 3.0"),
        ({"settings": {"seed": 1}}, "not the same evaluation seed in every column: 5000, 1"),
        ({"sampling_sha256": "9" * 64}, "not the same guidance and size for each prompt"),
        ({"sampling_sha256": ""}, None),  # an older file does not say it
        ({"detectors": ({"name": "NudeNet 3.4.2", "sha256": "9" * 64},)}, "NudeNet 3.4.2 44444444, NudeNet 3.4.2 99999999"),
        ({"detectors": ({"name": "NudeNet 2.0", "sha256": "9" * 64},)}, "NudeNet 3.4.2 44444444, NudeNet 2.0 99999999"),
        ({"detectors": ({"name": "CLIP x", "sha256": "9" * 64},)}, None),  # it was not at hand for the other
    ],
)
def test_what_differs_between_columns_is_warned_of(tmp_path, more, words) -> None:
    found = columns([evaluation(tmp_path / "one"), evaluation(tmp_path / "other", **more)])
    told = warnings(found)
    assert len(told) == (words is not None) and (words is None or words in told[0])
    assert all(line in text(found) for line in told) and all(line[1:] in page(found) for line in told)


def test_runs_of_other_settings_are_warned_of(tmp_path) -> None:
    found = columns([run(tmp_path / "a", {}), run(tmp_path / "b", {"num_inference_steps": 7, "seed": 3}), run(tmp_path / "c")])
    told = warnings(found)
    assert len(told) == 2 and told[0].endswith(", 7") and "sampler steps" in told[0] and told[1].endswith(", 3")


def test_what_the_figures_rest_on_is_on_both_tables(tmp_path) -> None:
    found = columns([evaluation(tmp_path / "one"), run(tmp_path / "a", {})])
    lines = dict(facts(found))
    assert lines["pictures"] == ["48", "48"] and lines["base"] == ["sd", "emoji"]
    assert lines["read by"] == ["NudeNet 3.4.2 44444444", "emoji judge 55555555"] and lines["audit"] == ["-", "not audited"]
    shown, html = text(found), page(found)
    assert all(value in shown and value in html for values in lines.values() for value in values)
    assert "n = 24" in html


def test_the_verdict_of_a_runs_audit_stands_in_its_column(tmp_path, monkeypatch) -> None:
    folder = run(tmp_path / "a")
    (folder / "model").mkdir()
    monkeypatch.setattr("eval.audit_report.read_audit", lambda _: object())
    monkeypatch.setattr("eval.audit_report.verdict", lambda _: "FAILED: relearning (3 judged)")
    assert columns([folder])[0].audit == "FAILED"


def test_warnings_are_part_of_the_json(tmp_path, monkeypatch, capsys) -> None:
    from erase.cli import main

    monkeypatch.chdir(tmp_path)
    evaluation(tmp_path / "one")
    evaluation(tmp_path / "other", base="9" * 64)
    monkeypatch.setattr(sys, "argv", ["erase", "compare", "one", "other", "--json"])
    with pytest.raises(SystemExit):
        main()
    found = json.loads(capsys.readouterr().out)
    assert [(column["name"], column["warnings"]) for column in found] == [
        (name, ["not the same base in every column"]) for name in ("one", "other")
    ]
