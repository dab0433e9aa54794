"""The record of the audited runs: its cells by hand, and what it refuses."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from benchmarks.audits import README, RECORD, TABLE, read_run
from benchmarks.audits_documents import (
    ATTACKS,
    HEAD,
    block,
    cell,
    outdated,
    readme,
    recipe_of,
    relearning_cell,
    short_table,
    table,
)
from erase.recipes import resolve
from eval.attacks import PROBES
from eval.detectors import EmojiJudge
from pipelines.load import EMOJI_VOCABULARY

COUNTS = {"model": 12, "base": 8, "retrain": 0}
KNOWN: Any = SimpleNamespace(vocabulary=EMOJI_VOCABULARY)


def line(probe: str, status: str = "PASS", **more: Any) -> dict[str, Any]:
    share = {"value": 0.0, "low": 0.0, "high": 0.2, "n": 24}
    found = {"after": share, "before": share | {"value": 1.0}, "retrain": None, "figures": {}}
    return {"probe": probe, "status": status, "reason": "", "parts": {}, "seconds": 1.0, **found, **more}


def steps(**sides: tuple[int, int]) -> dict[str, Any]:
    return {name: {"steps": number, "back": back} for name, (number, back) in sides.items()}


def test_the_cells_by_hand() -> None:
    found = {"value": 0.25, "low": 0.1, "high": 0.4, "n": 24}
    assert cell(line("prompts")) == "0 of 24 (24 of 24)"
    assert cell(line("prompts", "FAIL", after=found)) == "**6 of 24** (24 of 24)"
    assert cell(line("text_free", "REPORTED", after=found, retrain=found)) == "6 of 24 (24 of 24; 6)"
    assert cell(line("prompts", "NOT MEASURED", after=found)) == "weak attack: 6 of 24 (24 of 24)"
    fresh = {side: {"exact noise": found, "50% fresh noise": found | {"value": count / 24}} for side, count in COUNTS.items()}
    told = cell(line("text_free", "REPORTED", after=found, retrain=found, parts=fresh))
    assert told == "6 of 24 (24 of 24; 6); 50% fresh noise: 12 (8; 0)"
    fresh.pop("retrain")
    assert cell(line("text_free", "REPORTED", parts=fresh)) == "0 of 24 (24 of 24); 50% fresh noise: 12 (8)"
    assert cell(None) == cell(line("prompts", "NOT MEASURED", after=None)) == "not measured"
    base = {"a": {"value": 1.0, "n": 24}, "b": {"value": 1 / 3, "n": 3}, "c": {"value": 0.0, "n": 3}}
    parts = {"base": base, "model": {"a": {"value": 0.0, "n": 24}, "b": {"value": 2 / 3, "n": 3}, "c": {"value": 0.0, "n": 3}}}
    assert cell(line("prompts", parts=parts)) == "0 of 24 (24 of 24); 1 of 3 variants, 2 by the other variants"
    counted = {"value": 2 / 27, "low": 0.0, "high": 0.2, "n": 27}
    assert cell(line("tooling", "FAIL", after=counted, parts=parts)) == "**2 of 27** (24 of 24); 1 of 3 variants"
    assert cell(line("benign", parts=parts)) == "0 of 24 (24 of 24)"


def test_the_steps_of_relearning() -> None:
    assert relearning_cell(line("relearning", figures=steps(model=(56, 1), retrain=(72, 1)))) == "56 (Retrain 72)"
    assert relearning_cell(line("relearning", "FAIL", figures=steps(model=(8, 1), retrain=(72, 1)))) == "**8** (Retrain 72)"
    assert relearning_cell(line("relearning", figures=steps(model=(96, 0)))) == "more than 96 (no Retrain)"
    assert relearning_cell(None) == "not measured"


def kept_row(*lines: dict[str, Any], **more: Any) -> dict[str, Any]:
    erased = {"forget_accuracy": 0.01, "ira": 1.0, "cra": 0.995}
    made: dict[str, Any] = {
        "recipe": recipe_of(resolve({"concept": "dog"}, [])),
        "detectors": {"judge": "1"},
        "audit": {"settings": {}},
    }
    made |= {"seed": 0, "environment": {"date": "2026-11-26", "processor": "one", "cores": 2}}
    return {"concept": "dog", "erased": erased, "lines": list(lines), **made, **more}


def test_the_table_has_a_row_for_each_run() -> None:
    kept = line("kept", after={"value": 0.75, "n": 24})
    printed = table([kept_row(line("mask", after=None), line("benign"), kept)], "1").splitlines()
    assert len({row.count("|") for row in printed}) == 1 and len(printed) == 3
    assert printed[2].startswith("| dog | 99.0, 100.0, 99.5 | 0 changed | 18 of 24 (24 of 24) | not measured |")
    for status, words in (("FAIL", "**changed**"), ("NOT MEASURED", "not measured")):
        assert table([kept_row(line("mask", status))], "1").splitlines()[2].split(" | ")[2] == words


def test_a_row_says_in_what_it_is_not_of_today() -> None:
    assert outdated(kept_row(), "1") == []
    assert outdated(kept_row(), "2") == outdated(kept_row(detectors={}), "1") == ["other judge"]
    assert outdated(kept_row(recipe="older"), "1") == ["other recipe"]
    ahead, faster = (["method.lookahead_share=0.5"], ["method.lookahead_learning_rate=1e-4"])
    plain, looking, off = (recipe_of(resolve({"concept": "dog"}, settings)) for settings in ([], ahead, faster))
    assert plain == off != looking != recipe_of(resolve({"concept": "dog"}, [*ahead, *faster]))
    now = {name: json.loads(PROBES[name].config().model_dump_json()) for name in ATTACKS}
    assert outdated(kept_row(audit={"settings": now}), "1") == []
    del now["relearning"]["rows_at_once"], now["benign"]["rows_at_once"]  # for memory alone, and not in older records
    assert outdated(kept_row(audit={"settings": now}), "1") == []
    now["adversarial_prompt"].pop("num_exchanges")
    now["benign"]["steps"] = 1
    assert outdated(kept_row(audit={"settings": now}), "1") == ["other adversarial prompt and benign"]
    assert "| dog, other judge |" in table([kept_row()], "2")


def test_a_run_that_was_not_audited_or_has_other_settings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="was not audited"):
        read_run(tmp_path, KNOWN)
    (tmp_path / "audit").mkdir()
    kept = {
        "model": {"name": "/some/run/model", "sha256": "1"},
        "base": {"name": "emoji", "sha256": "0"},
        "retrain": None,
        "quick": False,
        "passed": True,
        "settings": {},
        "seconds": 1,
        "versions": {},
        "detectors": [{"name": "emoji judge", "sha256": "2", "held_out_accuracy": {}}],
    }
    (tmp_path / "audit" / "audit.json").write_text(
        json.dumps(kept | {"lines": [line("prompts"), line("tooling", "NOT ASKED")]})
    )
    side = {"forget_accuracy": 0.0, "ira": 1.0, "cra": 1.0, "intervals": {}}
    results = {"concept": "dog", "kind": "object", "base": side, "erased": side, "concepts": [{"anchors": ["cat"]}]}
    (tmp_path / "results.json").write_text(json.dumps(results))
    for settings in ([], ["method.negative_guidance=0"]):
        config = resolve({"concept": "dog"}, settings).model_dump(mode="json")
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config | {"versions": {}}))
        if settings:
            with pytest.raises(ValueError, match="other settings than the recipe as it is shipped"):
                read_run(tmp_path, KNOWN)
        else:
            row = read_run(tmp_path, KNOWN)
            assert (row["concept"], row["seed"], [one["probe"] for one in row["lines"]]) == ("dog", 0, ["prompts"])
            (tmp_path / "results.json").write_text(json.dumps(results | {"concepts": [{"anchors": ["horse"]}]}))
            with pytest.raises(ValueError, match=r"the anchors .*horse.*; the recipe takes .*cat"):
                read_run(tmp_path, KNOWN)
            assert row["detectors"] == {"emoji judge": "2"}
            assert row["sha256"] == {"base": "0", "model": "1"} and "/some/" not in json.dumps(row)


def test_the_document_is_what_the_record_makes_of_it() -> None:
    """Also after a change of recipe, judge or attacks: its rows then say that they are of others."""
    rows, judge = json.loads(RECORD.read_text(encoding="utf-8")), str(EmojiJudge().card()["sha256"])
    assert TABLE.read_text(encoding="utf-8") == f"{HEAD}\n{table(rows, judge)}"
    shown = README.read_text(encoding="utf-8")
    assert shown == readme(shown, rows, judge)


def test_readme_has_the_erased_model_alone() -> None:
    found = {"value": 0.25, "low": 0.1, "high": 0.4, "n": 24}
    parts = {"base": {"a": found | {"value": 1.0}}, "model": {"a": found, "b": {"value": 1.0, "n": 1}}}
    lines = [line("prompts", after=found, parts=parts), line("adversarial_prompt", "FAIL", after=found)]
    lines += [line("benign", "NOT MEASURED"), line("relearning", figures=steps(model=(56, 1), retrain=(72, 1)))]
    (row,) = short_table([kept_row(*lines)]).splitlines()[2:]
    assert row == "| dog | 6 of 24, 1 not counted | **6 of 24** | not measured | weak attack: 0 of 24 | 56 (Retrain 72) |"


def test_what_readme_says_of_its_rows_is_what_they_are() -> None:
    """Of rows without a fault nothing but their seed, date and machine; of others each fault, and which rows have it."""

    def told(*rows: dict[str, Any], judge: str = "1") -> str:
        return " ".join(block(list(rows), judge).partition("\n\n")[2].split())

    sound = kept_row(line("prompts"))
    assert told(sound) == "One run each, seed 0; 2026-11-26, one, 2 cores. No limit is broken."
    assert "Bold breaks its limit." in told(kept_row(line("prompts", "FAIL")))
    assert "Broken as well: tooling of dog and mask of dog." in told(kept_row(line("tooling", "FAIL"), line("mask", "FAIL")))
    found = {"value": 0.25, "low": 0.1, "high": 0.4, "n": 24}
    assert "base (dog, benign fine-tuning: 6 of 24) for" in told(kept_row(line("benign", "NOT MEASURED", before=found)))
    assert "Not counted: " in told(kept_row(line("prompts", parts={"base": {}, "model": {"a": found}})))
    assert "All rows are older than what is shipped now ([what changed](docs/audits.md)): other judge." in told(
        sound, judge="2"
    )
    older = kept_row(concept="church", recipe="older", detectors={})
    assert "Some rows are older than what is shipped now" in told(sound, older)
    assert "church (other recipe), church (other judge)." in told(sound, older)
    fresh = {side: {"50% fresh noise": found | {"value": count / 24}} for side, count in COUNTS.items()}
    held = told(kept_row(line("text_free", "REPORTED", parts=fresh)))
    assert "or more: dog in 12 of 24 (base 8 of 24; Retrain 0 of 24); no limit is set." in held
    fresh["model"], fresh["base"] = fresh["base"], fresh["model"]
    assert "Without any text" not in told(kept_row(line("text_free", "REPORTED", parts=fresh)))
