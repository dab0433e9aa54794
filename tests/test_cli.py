"""The real command on the embedded model, in a folder of its own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from erase.config import LoadConfig
from erase.export import pipeline_hash
from erase.files import slug
from erase.folder import require_intact
from erase.methods import METHODS
from erase.patch import patch_provenance
from erase.recipes import resolve
from erase.saliency import load_mask
from erase.telling import summary
from pipelines.load import EMOJI_WEIGHTS, load, model_hash

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
FILES = {
    "README.md",
    "config.yaml",
    "data.safetensors",
    "mask.safetensors",
    "metrics.jsonl",
    "model",
    "patch.safetensors",
    "pictures",
    "report.html",
    "results.json",
    "run.json",
}


def small(**more: object) -> list[str]:
    return [part for key, value in (SMALL | more).items() for part in ("--set", f"{key}={value}")]


def erase(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "erase.cli", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=900, check=False)


def erase_here(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The same entry point in this process: no second import of torch."""
    from erase.cli import main

    monkeypatch.setattr(sys, "argv", ["erase", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capsys.readouterr()
    return subprocess.CompletedProcess(arguments, stop.value.code, out, err)


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    for word in words:
        assert word in done.stderr, done.stderr


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small, complete run of `erase --concept dog`."""
    folder = tmp_path_factory.mktemp("cli")
    done = erase("--concept", "dog", "--out", "run", "--json", *small(), cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "stdout.json").write_text(done.stdout)
    (folder / "stderr.txt").write_text(done.stderr)
    return folder / "run"


def test_a_run_leaves_exactly_the_evidence_it_promises(run: Path) -> None:
    assert {path.name for path in run.iterdir()} == FILES
    printed = json.loads((run.parent / "stdout.json").read_text())
    results = json.loads((run / "results.json").read_text())
    assert printed == results | {"skipped": [], "out": "run"}
    assert {"concept", "model", "method", "density", "seed", "base", "erased", "audit", "seconds"} <= results.keys()
    assert {"forget_accuracy", "ira", "cra", "n"} <= results["base"].keys() & results["erased"].keys()
    assert {"generate", "saliency", "train", "evaluate", "total"} <= results["seconds"].keys()
    assert results["peak_rss_gb"] > 0.1
    assert "%|" in (run.parent / "stderr.txt").read_text(), "progress bars go to stderr"


def test_the_mask_is_exact_and_nothing_outside_it_moved(run: Path) -> None:
    mask, provenance = load_mask(run / "mask.safetensors")
    results = json.loads((run / "results.json").read_text())
    before = load_file(EMOJI_WEIGHTS / "unet" / "diffusion_pytorch_model.safetensors")
    after = load_file(run / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    changed = {name: after[name] != before[name].float() for name in before}
    assert mask.keys() == before.keys()
    assert not any((changed[name] & ~mask[name]).any() for name in mask)
    moved = sum(int((changed[name] & mask[name]).sum()) for name in mask)
    num_salient, num_weights = (sum(int(f(m)) for m in mask.values()) for f in (torch.sum, torch.numel))
    assert num_salient == int(0.5 * num_weights) == results["audit"]["num_salient"]
    assert moved / num_salient == results["audit"]["changed_inside_mask_share"] >= 0.999
    assert results["audit"]["changed_outside_mask"] == 0
    assert provenance["concept"] == "dog"
    base = patch_provenance(run / "patch.safetensors")
    assert base["base"] == model_hash("emoji") and base["weights"] == pipeline_hash(load("emoji").pipeline)


def test_the_config_file_is_the_run(run: Path) -> None:
    text = (run / "config.yaml").read_text()
    config = yaml.safe_load(text)
    assert config["concept"] == "dog"
    assert config["train"]["steps"] == 3
    assert config["versions"]["torch"] == torch.__version__
    assert "# Fraction of the denoiser's weights allowed to change" in text
    again = erase("--config", "run/config.yaml", "--out", "run", "--json", cwd=run.parent)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["skipped"] == ["generate", "saliency", "train", "export", "evaluate", "report"]


def test_the_report_stands_alone(run: Path) -> None:
    html = (run / "report.html").read_text()
    assert html.count("data:image/png;base64,") >= 2 * 20
    assert "http://" not in html.replace("http://www.w3.org", "")
    assert "https://" not in html
    assert "<script" not in html
    for word in ("Unlearning accuracy", "95 % Wilson intervals", "outside the mask", "mid_block", "forget_loss"):
        assert word in html


def test_again_reuses_every_stage_and_a_damaged_file_is_made_again(run: Path) -> None:
    before = (run / "mask.safetensors").read_bytes()
    damaged = bytearray(before)
    damaged[-1] ^= 1
    (run / "mask.safetensors").write_bytes(damaged)
    done = erase("--concept", "dog", "--out", "run", "--json", *small(), cwd=run.parent)
    assert done.returncode == 0, done.stderr
    assert "mask.safetensors is not what was written" in done.stderr
    assert (run / "mask.safetensors").read_bytes() == before
    assert json.loads(done.stdout)["skipped"] == ["generate", "train", "export", "evaluate", "report"]


def test_a_stopped_run_goes_on_to_the_same_result(tmp_path: Path) -> None:
    """Ctrl-C once the fourth step's state is there, eight steps before the end; prompts by hand need no pictures to judge."""
    train = {"steps": 12, "checkpoint_every": 4, "forget_batch_size": 2, "retain_batch_size": 2}
    prompts = {"prompts.forget": "[a dog]", "prompts.becomes": "[a cat]", "prompts.retain": "[a car]", "data.num_anchor": 0}
    longer = small(**{f"train.{key}": value for key, value in train.items()}, **prompts, **{"saliency.density": 0.05})
    whole = erase("--concept", "dog", "--out", "whole", *longer, cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    command = [sys.executable, "-m", "erase.cli", "--concept", "dog", "--out", "stopped", *longer]
    process = subprocess.Popen(  # a shell's background job has Ctrl-C switched off, and hands that on
        command,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    state = tmp_path / "stopped" / "state"
    while not list(state.glob("*.safetensors")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert "run the same command again to resume" in stderr
    stopped = [json.loads(line)["step"] for line in (tmp_path / "stopped" / "metrics.jsonl").read_text().splitlines()]
    assert 4 <= len(stopped) < 12 and list(state.glob("*.safetensors"))
    again = erase("--concept", "dog", "--out", "stopped", *longer, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    for name in ("mask.safetensors", "patch.safetensors"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("stopped", "whole")]
    steps = [[(r["step"], r["loss"]) for r in map(json.loads, part)] for part in lines]
    assert steps[0] == steps[1] and len(steps[0]) == 12


def test_settings_of_speed_memory_and_place_make_no_other_run(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a finished run nothing is made again; what may change a stage's result a little may differ until that is finished."""
    monkeypatch.chdir(tmp_path)
    folder = Path(shutil.copytree(run, tmp_path / "run"))

    def again(*more: str) -> Any:
        return erase_here(["--concept", "dog", "--out", "run", *small(), *more, "--json"], monkeypatch, capsys)

    free = ["--set", "data.batch_size=7", "--set", "evaluation.batch_size=5", "--cache-dir", "elsewhere", "--device", "cpu"]
    for more in (free, []):
        done = again(*more)
        assert done.returncode == 0 and "is not what was written" not in done.stderr, done.stderr
        assert json.loads(done.stdout)["skipped"] == ["generate", "saliency", "train", "export", "evaluate", "report"]
        require_intact(folder / "config.yaml")
    rounded = ("train.accumulate=2", "train.gradient_checkpointing=true", "saliency.batch_size=3")
    for setting in rounded:
        refused(again("--set", setting), "another config", setting.partition("=")[0])
    record = json.loads((folder / "run.json").read_text())
    stages = {"generate": record["stages"]["generate"]}
    (folder / "run.json").write_text(json.dumps({"config": record["config"], "stages": stages}))
    done = again(*[word for setting in rounded for word in ("--set", setting)])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["skipped"] == ["generate"]


def test_a_folder_with_another_config_is_left_alone(run: Path) -> None:
    before = (run / "results.json").read_bytes()
    done = erase("--concept", "dog", "--out", "run", *small(**{"train.steps": 4}), cwd=run.parent)
    refused(done, "another config", "train.steps is 3 there and 4 here")
    assert (run / "results.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--concept", ""], ["the concept is empty"]),
        (["--concept", "doog"], ["does not know 'doog'", "dog"]),
        (["--concept", "zebra"], ["does not know 'zebra'", "`erase --concept CONCEPT --model CHECKPOINT`"]),
        (["--concept", "puppy"], ["dog"]),
        (["--concept", "dog and cat"], ["one object"]),
        (["--concept", "nudity"], ["CompVis/stable-diffusion-v1-4", "hf download", "erase --concept dog"]),
        (["--concept", "dog", "--density", "0"], ["saliency.density", "greater than 0"]),
        (["--concept", "dog", "--density", "1.5"], ["saliency.density", "less than or equal to 1"]),
        (["--concept", "dog", "--density", "nan"], ["saliency.density"]),
        (["--concept", "dog", "--set", "train.steps=0"], ["train.steps"]),
        (["--concept", "dog", "--set", "method.alpha=-1"], ["method.alpha"]),
        (["--concept", "dog", "--set", "train.stepz=5"], ["train.stepz is not a setting", "steps"]),
        (["--concept", "dog", "--set", "steps"], ["key=value"]),
        (["--concept", "dog", "--set", "method.anchor=dog"], ["anchor is the concept itself"]),
        (["--concept", "dog", "--set", "method.anchor=zebra"], ["zebra", "cat"]),
        (["--concept", "dog", "--method", "magic"], ["magic", "salun"]),
        (["--concept", "dog", "--model", "nowhere/at/all"], ["there is no model"]),
        (["--concept", "dog", "--model", "./missing"], ["there is no model"]),
        (["--concept", "dog", "--config", "missing.yaml"], ["no config file"]),
        (["--concept", "dog", "--out", "/proc/run"], ["cannot write to /proc/run"]),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_2(
    arguments: list[str],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(erase_here(arguments, monkeypatch, capsys), *words)
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_is_no_traceback_from_the_shell_either(tmp_path: Path) -> None:
    done = erase("--concept", "doog", cwd=tmp_path)
    refused(done, "does not know 'doog'")
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_a_folder_that_is_no_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    refused(erase_here(["--concept", "dog", "--model", "folder"], monkeypatch, capsys), "no model_index.json")
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x04")
    refused(erase_here(["--concept", "dog", "--model", "model.ckpt"], monkeypatch, capsys), "pickle", "safetensors")


def test_a_dry_run_prints_everything_and_does_nothing(tmp_path: Path) -> None:
    done = erase("--concept", "line art", "--dry-run", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["kind"] == "style"
    assert report["config"]["train"]["steps"] > 0
    prompts, data = report["prompts"], report["config"]["data"]
    assert len(prompts["forget"]) == data["num_forget"] and len(prompts["retain"]) == data["num_retain"] + data["num_anchor"]
    assert all("line art" in row["prompt"] and "line art" not in row["becomes"][0] for row in prompts["forget"])
    assert len(prompts["evaluation_forget"]) == report["config"]["evaluation"]["num_forget"] and prompts["evaluation_retain"]
    assert report["estimate"]["total_s"] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("method", "becomes"), [("salun", ["cat"]), ("uce", ["cat"]), ("esd", []), ("gradient_ascent", [])])
def test_a_dry_run_names_an_anchor_for_methods_that_take_one(
    method: str, becomes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("erase.dry_run.estimate", lambda *_: {})
    done = erase_here(["--concept", "dog", "--method", method, "--dry-run", "--json"], monkeypatch, capsys)
    assert json.loads(done.stdout)["becomes"] == becomes


def test_the_summary_says_ua_and_whether_it_collapsed_and_no_mask_where_there_is_none() -> None:
    share = {"intervals": {key: {"n": 96} for key in ("forget", "ira", "cra")}, "ira": 0.9, "cra": 0.8}
    check = {"name": "drift", "meaning": "", "value": 0.7, "limit": 0.5, "passed": False}
    results = {
        "concept": "dog",
        "model": "emoji",
        "method": "esd",
        "density": 1.0,
        "skipped": [],
        "peak_rss_gb": 1.0,
        "base": share | {"forget_accuracy": 1.0},
        "erased": share | {"forget_accuracy": 0.25},
        "audit": {"changed_outside_mask": 0, "changed_inside_mask_share": 1.0, "num_salient": 9, "num_weights": 9},
        "seconds": {"total": 1.0},
        "detector": {"name": "judge"},
        "collapse": {"passed": False, "checks": [check]},
    }
    config = resolve({"concept": "dog", "method.name": "esd"}, ["saliency.method=none"])
    text = summary(results, config, Path("run"))
    assert text.startswith("dog erased from emoji with esd, no mask:") and "density" not in text and "outside" not in text
    assert "  unlearning accuracy (UA)               0.0 %      75.0 %   n = 96\n" in text
    assert "\n  collapse gate: FAILED, drift is 0.7 (limit 0.5): the model no longer draws recognisable pictures" in text
    fine = summary(results | {"collapse": {"passed": True, "checks": []}}, config, Path("run"))
    assert "\n  collapse gate: passed\n" in fine
    unknown = summary(results | {"detector": None, "collapse": None}, config, Path("run"))
    assert "forgetting, retention, collapse: not measured" in unknown and "gate" not in unknown
    masked = summary(results | {"density": 0.5}, resolve({"concept": "dog"}, []), Path("run"))
    assert "density 0.5" in masked and "weights changed outside the mask: 0; inside: 100.00 % of 9 (of 9)" in masked


@pytest.mark.parametrize(
    ("given", "then"), [({}, "3000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")]
)
def test_waiting_threads_leave_the_core_before_torch_is_there(given: dict[str, str], then: str) -> None:
    """GNU's OpenMP reads it when torch is loaded: beside a busy core a step of two threads takes 1.3 s with it, else 7."""
    code = (
        "import sys, os, atexit; import erase.cli; assert 'torch' not in sys.modules; sys.argv = ['erase', '--version'];"
        "atexit.register(lambda: print(os.environ.get('GOMP_SPINCOUNT'))); erase.cli.main()"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    environment |= given
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0 and done.stdout.split()[-1] == then, done.stderr


def test_a_bfloat16_run_rounds_nothing_but_what_it_trains(tmp_path: Path) -> None:
    """The denoiser worked in bfloat16; the exported model is float32 and outside the mask the base bit for bit."""
    done = erase("--concept", "dog", "--dtype", "bfloat16", "--out", "run", "--json", *small(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    audit = json.loads(done.stdout)["audit"]
    assert audit["changed_outside_mask"] == 0 and audit["changed_inside_mask_share"] > 0.99
    file = "unet/diffusion_pytorch_model.safetensors"
    base, erased = (load_file(folder / file) for folder in (EMOJI_WEIGHTS, tmp_path / "run" / "model"))
    assert {tensor.dtype for tensor in erased.values()} == {torch.float32}
    moved = torch.cat([(erased[name] - base[name].float()).abs().view(-1) for name in base])
    assert patch_provenance(tmp_path / "run/patch.safetensors")["weights"] == pipeline_hash(load("emoji").pipeline)
    assert 0 < moved.max() < 5e-3, "three small steps move no weight far: no rounding to bfloat16 (up to 1/256) went in"


def test_the_estimated_memory_is_the_measured_within_15_percent(run: Path, tmp_path: Path) -> None:
    done = erase("--concept", "dog", "--dry-run", "--json", *small(), cwd=tmp_path)
    estimated = json.loads(done.stdout)["estimate"]["memory_gb"]["peak"]
    measured = json.loads((run / "results.json").read_text())["peak_rss_gb"]
    assert estimated == pytest.approx(measured, rel=0.15)


def test_concepts_lists_what_the_model_knows(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    listed = json.loads(erase_here(["concepts", "--json"], monkeypatch, capsys).stdout)
    assert len(listed["objects"]) >= 24
    assert len(listed["styles"]) >= 6
    assert listed["methods"] == list(METHODS)


@pytest.mark.parametrize("arguments", [["concepts"], ["--method", "help"]], ids=" ".join)
def test_every_method_is_listed_with_what_it_does_and_its_paper(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = erase_here(arguments, monkeypatch, capsys)
    assert not done.returncode and done.stderr == ""
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    for name, method in METHODS.items():
        assert method.line in lines[name] and lines[name].endswith(f"({method.paper})")


def test_a_patch_applies_to_its_base_and_to_no_other(run: Path, tmp_path: Path) -> None:
    patch = str(run / "patch.safetensors")
    done = erase("apply", patch, "--out", "full", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    erased = load_file(run / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    full = load_file(tmp_path / "full" / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(erased[name], full[name]) for name in erased)
    assert erase("apply", patch, "--strength", "0", "--out", "none", cwd=tmp_path).returncode == 0
    base = load_file(EMOJI_WEIGHTS / "unet" / "diffusion_pytorch_model.safetensors")
    none = load_file(tmp_path / "none" / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(base[name].float(), none[name]) for name in base)
    refused(erase("apply", patch, "--to", str(run / "model"), "--out", "twice", cwd=tmp_path), "another base")
    refused(erase("apply", patch, "--strength", "2", "--out", "two", cwd=tmp_path), "between 0 and 1.5")
    refused(erase("apply", str(run / "mask.safetensors"), "--out", "mask", cwd=tmp_path), "not an erasure patch")


WORK = {
    "run": (["--concept", "dog"], "erase.cli._run"),
    "eval": (["eval", "emoji", "--concept", "dog"], "eval.evaluate.evaluate"),
    "audit": (["audit", "emoji", "--baseline", "emoji", "--concept", "dog"], "eval.audit.audit"),
    "bench": (["bench", "methods", "--quick"], "erase.benching.run.bench"),
}


@pytest.mark.parametrize(("arguments", "work"), WORK.values(), ids=WORK)
def test_what_is_stopped_says_how_to_go_on_and_leaves_at_once(
    arguments: list[str], work: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C in the midst of the work; the process then ends without taking its libraries down."""
    done = stop_in(work, [*arguments, "--out", str(tmp_path / "out")], monkeypatch, capsys)
    assert str(tmp_path / "out") in done.stderr and "run the same command again to resume" in done.stderr


def test_a_dry_run_that_is_stopped_promises_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--concept", "dog", "--dry-run", "--out", str(tmp_path / "out")]
    done = stop_in("erase.cli._run", arguments, monkeypatch, capsys)
    assert "kept in" not in done.stderr and done.stderr == "erase: stopped.\n"


def stop_in(
    work: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> subprocess.CompletedProcess[str]:
    """The command, stopped where the work would be."""

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    left: list[int] = []
    monkeypatch.setattr(work, stopped)
    monkeypatch.setattr(os, "_exit", left.append)
    done = erase_here(arguments, monkeypatch, capsys)
    assert left == [done.returncode] == [130]
    return done


@pytest.mark.parametrize(
    ("error", "whose"),
    [
        (MemoryError(), "the machine"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: 9 bytes"),
            "the machine",
        ),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."), "the graphics card"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"), "the graphics card"),
    ],
    ids=["python", "cpu", "cuda", "mps"],
)
@pytest.mark.parametrize(
    ("command", "setting"),
    [("run", "train.accumulate"), ("eval", "--batch-size"), ("audit", "scene.batch_size"), ("bench", "")],
)
def test_too_little_memory_is_one_sentence_that_says_what_needs_less(
    error: Exception,
    whose: str,
    command: str,
    setting: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise error

    arguments, work = WORK[command]
    monkeypatch.setattr(work, fail)
    done = erase_here([*arguments, "--out", str(tmp_path / "out")], monkeypatch, capsys)
    refused(done, f"erase: {whose} does not have enough memory for this: ", setting)
    goes_on = f"kept in {tmp_path / 'out'}: the same command with --out {tmp_path / 'out'} and such settings continues"
    assert (goes_on in done.stderr) is (command == "run")
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def raised_in(module: str, body: str) -> Callable[..., None]:
    """A function of a module of that name."""
    names: dict[str, Any] = {"__name__": module}
    exec(f"def work(*_):\n    {body}", names)
    return names["work"]


@pytest.mark.parametrize(
    ("work", "internal"),
    [
        (raised_in("eval.evaluate", "raise ValueError('give two')"), False),
        (raised_in("eval.evaluate", "list(zip([1], [], strict=True))"), True),
        (raised_in("eval.evaluate", "a, b = []"), True),
        (raised_in("eval.evaluate", "b'\\xff'.decode()"), False),
        (raised_in("torch.nn", "raise ValueError('optimizer got an empty parameter list')"), True),
        (raised_in("evaluation", "raise ValueError('of another package')"), True),
        (raised_in("diffusers.models", "raise ValueError('the config has no sample_size')"), False),
        (lambda *_: json.loads("{"), False),
        (lambda *_: LoadConfig.model_validate({"dtype": "int8"}), False),
    ],
)
@pytest.mark.parametrize("debug", [None, "0", "1"])
def test_an_error_inside_is_one_sentence_that_says_so_and_its_traceback_is_for_who_asks(
    work: Callable[..., None],
    internal: bool,
    debug: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("eval.evaluate.evaluate", work)
    monkeypatch.delenv("ERASE_DEBUG", raising=False)
    if debug is not None:
        monkeypatch.setenv("ERASE_DEBUG", debug)
    arguments, _ = WORK["eval"]
    done = erase_here([*arguments, "--out", str(tmp_path / "out")], monkeypatch, capsys)
    *before, sentence = done.stderr.strip().splitlines()
    assert done.returncode == 2 and done.stdout == ""
    assert sentence.startswith("erase: internal error: ") is internal
    assert sentence.endswith("; set ERASE_DEBUG=1 to see where") is internal
    assert bool(before) is (debug == "1") and ("Traceback (most recent call last)" in done.stderr) is (debug == "1")


def test_another_error_of_ours_is_still_a_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from erase.cli import main

    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("eval.evaluate.evaluate", fail)
    monkeypatch.setattr(sys, "argv", ["erase", "eval", "emoji", "--concept", "dog", "--out", str(tmp_path / "out")])
    with pytest.raises(RuntimeError, match="a bug"):
        main()


@pytest.mark.parametrize("name", ["犬", "猫.safetensors"])
def test_an_evaluations_usual_folder_is_the_models_own_whatever_its_letters(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def say(_: object, __: object, ___: object, folder: Path, ____: object) -> None:
        raise ValueError(str(folder))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("eval.evaluate.evaluate", say)
    monkeypatch.setattr("eval.targets.find_target", lambda _: SimpleNamespace(name=name))
    done = erase_here(["eval", name], monkeypatch, capsys)
    assert f"runs/eval/{slug(name)}-emoji" in done.stderr and done.returncode == 2
    assert slug(name)[-7] == "-" and not slug(name).startswith("-")
