"""The release gate on real runs of the embedded model: as made, tampered with, unmasked, gone too far, not erased at all."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.packing import unpack
from benchmarks.retrained import PACKED
from erase.cli import main
from erase.saliency import load_mask
from eval.audit_options import NAMES

pytestmark = pytest.mark.slow

SMALL = {
    "data.num_forget": 8,
    "data.num_retain": 12,
    "data.num_anchor": 4,
    "data.num_inference_steps": 2,
    "saliency.rounds": 1,
    "train.steps": 3,
    "train.warmup_steps": 0,
    "evaluation.num_forget": 4,
    "evaluation.num_inference_steps": 2,
}
SCENE = ["--set=scene.num_inference_steps=8", "--set=scene.num_forget=6", "--set=scene.num_retain=12"]
UNET = Path("model/unet/diffusion_pytorch_model.safetensors")


def erase(*arguments: Any) -> int:
    """The exit code of the command, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["erase", *map(str, arguments)])
        try:
            main()
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0


def small_run(folder: Path, **changes: Any) -> Path:
    settings = [f"--set={key}={value}" for key, value in (SMALL | changes).items()]
    assert erase("--concept", "dog", "--out", folder, *settings) == 0
    return folder


def audited(capsys, *arguments: Any) -> tuple[int, dict[str, Any]]:
    """The exit code and the record, with the lines of what was asked for."""
    capsys.readouterr()
    code = erase("audit", *arguments, "--json")
    record = json.loads(capsys.readouterr().out)
    return code, record | {"lines": [line for line in record["lines"] if line["status"] != "NOT ASKED"]}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return small_run(tmp_path_factory.mktemp("audited") / "run")


def test_the_audit_of_a_run_goes_into_its_report_and_card_and_stays_there(run, capsys) -> None:
    code, record = audited(capsys, run, "--only", "mask")
    (line,) = record["lines"]
    assert code == 0 and line["status"] == "PASS" and "0 weights changed outside the mask" in line["reason"]
    assert record["mask"]["changed_outside"] == 0 and record["mask"]["blocks"]["text_encoder.encoder"]["allowed"] == 0
    assert record["mask"]["retyped"] == {"float16 -> float32": len(load_file(run / UNET)) + _others(run)}
    told = "whether dog is suppressed was not asked"
    assert "## Audit" in (run / "README.md").read_text() and told in (run / "README.md").read_text()
    assert told in (run / "report.html").read_text()
    report = (run / "report.html").read_bytes()
    assert small_run(run) == run
    assert (run / "report.html").read_bytes() == report
    assert json.loads((run / "run.json").read_text())["stages"].keys() >= {"report"}


def _others(run: Path) -> int:
    """Tensors of the other parts, all of which the base keeps in half precision too."""
    files = (run / "model").glob("*/*.safetensors")
    return sum(len(load_file(file)) for file in files if file.parent.name != "unet")


def test_a_run_tampered_with_fails_and_the_weight_is_named(run, tmp_path, capsys) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(run, bad)
    mask = load_mask(bad / "mask.safetensors")[0]
    weights = load_file(bad / UNET)
    name = next(name for name in sorted(mask) if not mask[name].all())
    at = tuple((~mask[name]).nonzero()[0].tolist())
    weights[name][at] = torch.nextafter(weights[name][at], torch.tensor(9.0))
    save_file(weights, bad / UNET, {"format": "pt"})
    code, record = audited(capsys, bad, "--only", "mask", "--out", tmp_path / "out")
    assert code == 1 and not record["passed"]
    reason = record["lines"][0]["reason"]
    assert f"1 weights changed outside the mask, first unet.{name}[{', '.join(map(str, at))}]" in reason
    assert "is not what its run wrote" in reason


def test_a_run_whose_mask_was_taken_away_or_changed_fails(run, tmp_path, capsys) -> None:
    """Without its mask a run is not one that was trained from scratch, and another's mask is not its own."""
    shutil.copytree(run, tmp_path / "run")
    mask = tmp_path / "run" / "mask.safetensors"
    mask.write_bytes(mask.read_bytes()[:-1] + bytes([mask.read_bytes()[-1] ^ 1]))
    code, record = audited(capsys, tmp_path / "run", "--only", "mask")
    assert code == 1 and "not what its run wrote" in record["lines"][0]["reason"]
    mask.unlink()
    code, record = audited(capsys, tmp_path / "run", "--only", "mask")
    assert code == 1 and "mask.safetensors is not there" in record["lines"][0]["reason"]


def test_a_run_without_a_mask_changes_the_denoiser_alone_and_breaks_anothers_claim(run, tmp_path, capsys) -> None:
    """What was not held back by a mask is said; text encoder and autoencoder are still the base's, or the run fails."""
    unmasked = small_run(tmp_path / "unmasked", **{"saliency.method": "none"})
    code, record = audited(capsys, unmasked, "--only", "mask", "--out", tmp_path / "one")
    (line,) = record["lines"]
    assert code == 0 and line["status"] == "PASS" and "since no mask limits them" in line["reason"]
    assert record["mask"]["changed_inside"] > 1_000_000 and record["mask"]["num_allowed"] < record["mask"]["num_weights"]
    code, record = audited(capsys, unmasked, "--only", "mask", "--mask", run / "mask.safetensors", "--out", tmp_path / "two")
    assert code == 1 and record["lines"][0]["status"] == "FAIL" and record["mask"]["changed_outside"] > 1_000_000


def statuses(record: dict[str, Any]) -> dict[str, str]:
    return {line["probe"]: line["status"] for line in record["lines"]}


def test_gradient_ascent_too_far_fails_both_lines_of_everything_else_and_a_short_run_neither(run, tmp_path, capsys) -> None:
    others = ["--only", "collapse,kept", *SCENE]
    code, record = audited(capsys, run, *others, "--out", tmp_path / "sound")
    assert code == 0 and statuses(record) == {"collapse": "PASS", "kept": "PASS"}
    too_far = {"method.name": "gradient_ascent", "method.alpha": 0, "train.steps": 12, "train.learning_rate": 0.01}
    ruined = small_run(tmp_path / "ruined", **too_far)
    code, record = audited(capsys, ruined, *others, "--out", tmp_path / "out")
    assert code == 1 and statuses(record) == {"collapse": "FAIL", "kept": "FAIL"}
    collapse, kept = record["lines"]
    assert "no longer makes pictures" in collapse["reason"] and kept["after"]["value"] < 0.5 and len(kept["examples"]) > 3
    page = (tmp_path / "out" / "audit.html").read_text()
    assert "Pictures that are no longer right" in page and page.count("data:image/png") == 2 * len(kept["examples"])


def test_all_probes_together_fail_a_run_that_hid_nothing_and_pass_a_model_that_never_saw_a_dog(run, tmp_path, capsys) -> None:
    """The command with its default probes, each of few tries: what every line comes to, and the exit code."""
    code, record = audited(capsys, run, "--quick", *SCENE, "--out", tmp_path / "run")
    untouched = {"mask": "PASS", "text_free": "REPORTED", "collapse": "PASS", "kept": "PASS"}
    attacked = ("prompts", "adversarial_prompt", "concept_inversion", "relearning", "benign", "tooling")
    assert code == 1 and statuses(record) == untouched | dict.fromkeys(attacked, "FAIL")
    assert list(statuses(record)) == [name for name in NAMES if name != "traces"]
    assert unpack(PACKED / "dog.safetensors", tmp_path / "never")
    options = ["--baseline", "emoji", "--concept", "dog", "--quick", *SCENE, "--out", tmp_path / "out"]
    code, record = audited(capsys, tmp_path / "never", *options)
    unknown = {"mask": "NOT MEASURED", "relearning": "NOT MEASURED"}  # without a claim, without a Retrain
    assert code == 0 and statuses(record) == untouched | dict.fromkeys(attacked, "PASS") | unknown


def test_a_model_that_was_not_erased_fails_every_way_of_asking(tmp_path, capsys) -> None:
    few = ["--set=prompts.per_kind=1", "--set=tooling.num=2", "--set=tooling.strengths=[0.9]"]
    options = ["--baseline", "emoji", "--concept", "dog", "--only", "prompts,tooling", "--quick", *SCENE, *few]
    code, record = audited(capsys, "emoji", *options, "--out", tmp_path / "out")
    assert code == 1 and {line["status"] for line in record["lines"]} == {"FAIL"}
    assert all(line["after"]["value"] == line["before"]["value"] >= 0.9 for line in record["lines"])
    assert {"name: a dog, 3d style"} <= {part for line in record["lines"] for part in line["counted"]}
