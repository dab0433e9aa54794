"""A run's base that is another now, is not at hand, or is elsewhere: nothing is measured against it or made of it unsaid."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import PROMPTS, SMALL, Silent, run_once, tiny_model
from safetensors.torch import load_file, save_file
from test_audit import erase

from erase.config import RunConfig
from erase.files import sha256
from erase.folder import recorded_base, require_recorded_base
from pipelines.load import model_hash

UNET = Path("unet/diffusion_pytorch_model.safetensors")


@pytest.fixture
def place(tmp_path: Path) -> tuple[dict[str, Any], Path]:
    """The settings of a run on a tiny model of its own, and the run's folder."""
    values = SMALL | {"model": tiny_model(tmp_path / "base"), "prompts": PROMPTS}
    run_once(values, tmp_path / "run")
    return values, tmp_path / "run"


def change(model: str) -> None:
    """One ulp more in one weight of a model on disk."""
    tensors = load_file(Path(model) / UNET)
    name = next(iter(tensors))
    tensors[name].view(-1)[0] = torch.nextafter(tensors[name].view(-1)[0], torch.tensor(9.0))
    save_file(tensors, Path(model) / UNET, {"format": "pt"})


def test_a_run_keeps_the_hash_of_its_base_and_knows_it_again(place: tuple[dict[str, Any], Path]) -> None:
    values, run = place
    config = RunConfig.model_validate(values)
    assert recorded_base(run) == model_hash(values["model"])
    require_recorded_base(run, config.model, model_hash(config.model, config.load))
    change(values["model"])
    with pytest.raises(ValueError, match=r"has changed since .*run was made"):
        require_recorded_base(run, config.model, model_hash(config.model, config.load))
    (run / "run.json").unlink()
    assert recorded_base(run) == ""
    require_recorded_base(run, config.model, model_hash(config.model, config.load))  # of older versions nothing is recorded


def test_the_same_command_on_a_changed_base_leaves_the_finished_run(place: tuple[dict[str, Any], Path]) -> None:
    values, run = place
    before = {path: sha256(path) for path in run.rglob("*") if path.is_file()}
    change(values["model"])
    with pytest.raises(ValueError, match=r"has changed since the run in .* was made"):
        run_once(values, run)
    assert {path: sha256(path) for path in run.rglob("*") if path.is_file()} == before


def test_neither_eval_nor_audit_takes_a_changed_base(place: Any, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    values, run = place
    kept = shutil.copytree(values["model"], tmp_path / "kept")
    change(values["model"])
    listed = tmp_path / "list.csv"
    listed.write_text("prompt\na house\n")
    evaluate = ["eval", run, "--suite", "prompts", "--prompts", listed, "--out", tmp_path / "eval", "--n", "1", "--steps", "1"]
    audit = ["audit", run, "--only", "mask", "--out", tmp_path / "audit", "--json"]
    for command in (evaluate, audit):
        code, out, err = erase(command, monkeypatch, capsys)
        assert code == 2 and "has changed since" in err and "--baseline" in err and not out
    assert not (tmp_path / "eval").exists() and not (tmp_path / "audit").exists()
    code, out, _ = erase([*audit, "--baseline", kept], monkeypatch, capsys)
    assert json.loads(out)["lines"][0]["status"] == "PASS", "the base as it was is taken by its place"


def test_a_verdict_is_told_though_the_runs_own_base_is_gone(place: Any, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """The report needs the base's vocabulary; the audit does not, with --baseline."""
    values, run = place
    moved = shutil.move(values["model"], tmp_path / "moved")
    code, out, err = erase(["audit", run, "--only", "mask", "--baseline", moved, "--json"], monkeypatch, capsys)
    assert json.loads(out)["lines"][0]["status"] == "PASS" and code in (0, 1)
    assert "report.html cannot be written again here" in err and "Traceback" not in err
    assert "## Audit" in (run / "README.md").read_text()


def test_a_card_that_was_edited_is_kept_with_the_audits_section_new(place: Any, monkeypatch: Any, capsys: Any) -> None:
    values, run = place
    card = run / "README.md"
    written = card.read_text()
    mine = written.replace("library_name:", "license: my-own\nlibrary_name:") + "\nMy own notes.\n"
    card.write_text(mine)
    erase(["audit", run, "--only", "mask", "--json"], monkeypatch, capsys)
    audited = card.read_text()
    assert "license: my-own" in audited and "My own notes." in audited and audited.count("## Audit") == 1
    told = Silent()
    run_once(values, run, told)
    assert card.read_text() == audited, "nor does the same command write it anew"
    card.unlink()
    run_once(values, run)
    assert "My own notes." not in card.read_text() and "## Audit" in card.read_text()


def test_an_empty_list_of_probes_is_not_the_whole_gate(place: Any, monkeypatch: Any, capsys: Any) -> None:
    code, out, err = erase(["audit", place[1], "--only", " , "], monkeypatch, capsys)
    assert code == 2 and "--only names no probe" in err and not out
