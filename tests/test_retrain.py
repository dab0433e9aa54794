"""Retrain: what it leaves out, what it refuses, and a run's folder around a model that is made anew."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from diffusers import StableDiffusionPipeline

from erase import methods
from erase.methods.retrain import Retrain, left_out, remake
from erase.plan import plan
from erase.recipes import resolve
from pipelines.load import EMOJI_VOCABULARY, EMOJI_WEIGHTS, load, model_hash
from pipelines.stable_diffusion import StableDiffusion


class Quiet:
    """Progress that keeps what was said."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def stage(self, name: str, total: int) -> Any:
        from contextlib import nullcontext

        return nullcontext(self)

    def advance(self, num: int = 1, **figures: float) -> None:
        pass

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def known(tiny_pipeline: StableDiffusionPipeline) -> StableDiffusion:
    return StableDiffusion(tiny_pipeline, EMOJI_VOCABULARY)


def planned(known: StableDiffusion, *names: str, **given: Any) -> Any:
    return plan(resolve({"concept": list(names), "method.name": "retrain", **given}, []), known)


@pytest.mark.parametrize(
    ("names", "options"),
    [
        (("dog",), ["--without", "dog"]),
        (("line art",), ["--without-style", "line art"]),
        (("gas pump", "neon"), ["--without", "gas pump", "--without-style", "neon"]),
    ],
)
def test_objects_and_styles_are_left_out(names: tuple[str, ...], options: list[str], known: StableDiffusion) -> None:
    assert left_out(planned(known, *names)) == options


def test_what_cannot_be_retrained_is_refused(known: StableDiffusion, tmp_path: Path) -> None:
    """An object in one style, another model than the embedded one, and data that are not there."""
    with pytest.raises(ValueError, match="a whole object or a whole style"):
        left_out(planned(known, "a dog, neon style"))
    with pytest.raises(ValueError, match=r"run `python -m pipelines.emoji.prepare`"):
        remake(Retrain(data=str(tmp_path / "none.npz")), planned(known, "dog"), tmp_path)
    other = replace(planned(known, "dog"), config=resolve({"concept": "dog", "model": "a/b"}, []))
    with pytest.raises(ValueError, match=r"for the embedded model, .*, not for a/b"):
        remake(Retrain(), other, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "told"),
    [({}, (None, None, 1)), ({"samples": 64, "autoencoder": "vae", "processes": 3, "threads": 2}, (64, Path("vae"), 2))],
    ids=["defaults", "all"],
)
def test_the_training_script_is_told_what_to_leave_out_and_every_setting(
    settings: dict[str, Any], told: Any, known: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the script itself reads its command line; its model becomes the run's, its log the run's metrics."""
    from pipelines.emoji import train

    data, commands, read = tmp_path / "sprites.npz", list[Any](), list[Any]()
    data.write_text("")

    def run(command: list[str], *, env: dict[str, str], **_: Any) -> SimpleNamespace:
        commands.append((command, env["OMP_NUM_THREADS"]))
        training = {"log": {"unet": [{"step": 100, "loss": 0.5}]}}
        (tmp_path / "run" / "state" / "model" / "training.json").write_text(json.dumps(training))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr("subprocess.run", run)
    monkeypatch.setattr(train, "train", read.append)
    config = Retrain(data=str(data), **settings)
    remake(config, planned(known, "gas pump", "neon", seed=7), tmp_path / "run")
    ((command, threads),) = commands
    processes = ["--standalone", "--nproc-per-node", str(config.processes)]
    assert command[:8] == [sys.executable, "-m", "torch.distributed.run", *processes, "-m", "pipelines.emoji.train"]
    monkeypatch.setattr(sys, "argv", command[7:])
    train.main()
    found = vars(read[0])
    assert (found["without"], found["without_style"], found["seed"], found["init"]) == (["gas pump"], ["neon"], 7, None)
    assert (found["samples"], found["vae"], found["threads"]) == told
    state = tmp_path / "run" / "state"
    assert (found["data"], found["work"], found["out"]) == (data, state, state / "model")
    assert threads == str(told[2]) and (tmp_path / "run" / "model" / "training.json").is_file()
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text()) == {"step": 100, "loss": 0.5, "unet_loss": 0.5}


def test_a_training_that_fails_says_so_and_keeps_its_state(known: StableDiffusion, tmp_path: Path) -> None:
    (tmp_path / "broken.npz").write_text("no drawings")
    with pytest.raises(ValueError, match="the training ended with status 1; give the same command again"):
        remake(Retrain(data=str(tmp_path / "broken.npz"), processes=1), planned(known, "dog"), tmp_path)
    assert (tmp_path / "state").is_dir() and not (tmp_path / "model").exists()


def test_a_run_around_a_new_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a method makes a whole model (here: the base once more), the folder has model, results and report, and no patch or
    mask; nothing of it is forgotten, since it is the base; given again, all is skipped."""
    from erase.benching.cells import QUICK
    from erase.run import execute

    def again(config: Any, plan: Any, folder: Path) -> None:
        shutil.copytree(EMOJI_WEIGHTS, folder / "model", ignore=shutil.ignore_patterns("judge"))
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 100, "unet_loss": 0.5}) + "\n")

    monkeypatch.setitem(methods.METHODS, "retrain", replace(methods.METHODS["retrain"], remake=again))
    config = resolve({"concept": "dog", "method.name": "retrain"}, list(QUICK))
    family, progress = load("emoji"), Quiet()
    run = execute(plan(config, family), family, tmp_path / "run", progress, model_hash("emoji"))
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        *("README.md", "config.yaml", "metrics.jsonl", "model", "pictures", "report.html", "results.json", "run.json")
    }
    assert (run["anchors"], run["density"]) == ([], 1.0)
    assert run["patch"] is False and run["base"]["by_name"] == run["erased"]["by_name"]
    assert progress.notes == ["retrain trains a new model from scratch: it makes no mask and no patch."]
    assert "there is no mask and no patch" in (tmp_path / "run" / "README.md").read_text()
    again_run = execute(plan(config, family), family, tmp_path / "run", progress, model_hash("emoji"))
    assert again_run["skipped"] == ["train", "evaluate", "report"]
