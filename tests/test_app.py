"""The page's parts without a page: limits, names, the form, the studio, the queue."""

import gc
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from erase.app import board, explore, form
from erase.app.catalog import Catalog, catalog
from erase.app.guard import Ask, Limits, Scene, asked, sentences, stacked
from erase.app.jobs import REMEMBERED, Job, Jobs
from erase.app.markup import blurred, enlarged, shot, table
from erase.app.screen import Screen, Sight
from erase.app.studio import SMALL, Loaded, Studio
from erase.app.worker import Reporter
from erase.config import LoadConfig, RunConfig, at
from erase.export import pipeline_hash
from erase.files import write_safetensors
from erase.methods.base import Config
from erase.patch import Patch, save_patch, weights_hash
from erase.recipes import resolve
from pipelines.load import EMOJI_VOCABULARY, EMOJI_WEIGHTS, load, model_hash
from pipelines.stable_diffusion import StableDiffusion

ROOT = Path(__file__).parent.parent
LIMITS = Limits()


# --- nothing heavy at import, and Gradio is an extra


def test_no_module_of_the_app_imports_torch_by_itself() -> None:
    modules = [f"erase.app.{path.stem}" for path in (ROOT / "erase" / "app").glob("*.py")]
    assert len(modules) > 10
    code = f"import sys, importlib; [importlib.import_module(m) for m in {modules!r} + ['app']]; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("command", [["app.py"], ["-m", "erase.cli", "app"]])
def test_without_gradio_the_command_says_what_to_install(command: list[str], tmp_path: Path) -> None:
    hide = "import sys, importlib.util as u\nf = u.find_spec\nu.find_spec = lambda n, *a: None if n == 'gradio' else f(n, *a)\n"
    (tmp_path / "sitecustomize.py").write_text(hide)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "erase: the app needs Gradio, which is not installed: `pip install 'erase-concepts[app]'`.\n"


def test_the_style_sheet_comes_with_the_package() -> None:
    assert (ROOT / "erase" / "app" / "page.css").is_file()
    assert "http" not in (ROOT / "erase" / "app" / "page.css").read_text()


# --- limits


def test_a_request_within_the_limits_is_what_was_asked() -> None:
    assert asked("  a   dog ", 7, 20, 3, 0, 3, LIMITS) == Ask("a dog", (7, 8, 9), 20, 3.0, None)
    assert asked("a dog", 0, 1, 1.0, 512, 1, LIMITS).size == 512
    assert stacked("emoji", ["x", "y"], [0, 1.5], LIMITS) == Scene("emoji", (("x", 0.0), ("y", 1.5)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": "x" * 401}, "401 characters; at most 400 are allowed"),
        ({"prompt": "a \u202e dog"}, "changes the direction of the text"),
        ({"seed": -1}, "from 0 to"),
        ({"seed": 1.5}, "whole number"),
        ({"seed": "one"}, "seed is one"),
        ({"steps": 101}, "from 1 to 100"),
        ({"steps": True}, "number from 1"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"guidance": None}, "guidance is None"),
        ({"size": 2048}, "from 0 to 1024"),
        ({"size": 100}, "multiple of 8"),
        ({"num": 10}, "number of seeds is 10"),
    ],
)
def test_a_request_beyond_a_limit_is_refused_with_the_limit(change: dict[str, Any], said: str) -> None:
    request = {"prompt": "a dog", "seed": 0, "steps": 20, "guidance": 3, "size": 0, "num": 1} | change
    with pytest.raises(ValueError, match=said):
        asked(**request, limits=LIMITS)


@pytest.mark.parametrize(
    ("names", "strengths", "said"),
    [
        (["a"] * 5, [1] * 5, "one model takes at most 4"),
        (["a", "a"], [1, 1], "twice"),
        (["a"], [1.6], "0 to 1.5"),
        (["a", "b"], [1], "1 strengths given"),
    ],
)
def test_a_stack_beyond_a_limit_is_refused(names: list[str], strengths: list[float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        stacked("emoji", names, strengths, LIMITS)


@pytest.mark.parametrize("patches", [True, 5, "dog", {"dog": 1}, 1.5])
def test_what_is_no_list_of_erasures_is_refused(patches: Any) -> None:
    with pytest.raises(ValueError, match="must be a list of names"):
        stacked("emoji", patches, [1.0], LIMITS)
    assert stacked("emoji", None, [], LIMITS) == Scene("emoji")


@pytest.mark.parametrize("method", [[], {}, None, 7, ["salun"]])
def test_a_method_that_is_no_text_is_refused(method: Any) -> None:
    with pytest.raises(ValueError, match="There is no method"):
        form.changed("dog", "emoji", {}, method, {}, LIMITS)


anything = st.one_of(st.none(), st.text(), st.integers(), st.floats(), st.booleans(), st.lists(st.integers()), st.just({}))


@settings(max_examples=150, deadline=None)
@given(anything, anything, anything, anything, anything, anything)
def test_whatever_is_asked_is_drawn_or_refused_in_a_sentence(
    prompt: Any, seed: Any, steps: Any, guidance: Any, size: Any, num: Any
) -> None:
    try:
        ask = asked(prompt, seed, steps, guidance, size, num, LIMITS)
    except ValueError as error:
        said = str(error)
    else:
        said = "."
        assert ask.prompt and len(ask.prompt) <= LIMITS.prompt
        assert 1 <= ask.steps <= LIMITS.steps and len(ask.seeds) <= LIMITS.seeds
    assert said.endswith(".") and len(said) < 300


def test_what_fails_becomes_one_escaped_sentence_without_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(RuntimeError, match=r"^no &lt;b&gt; here$"), sentences(RuntimeError):
        raise ValueError("no <b>\n here")
    with pytest.raises(RuntimeError) as caught, sentences(RuntimeError):
        raise KeyError("/secret/path")
    assert "secret" not in str(caught.value) and "the app failed" in caplog.text
    with pytest.raises(RuntimeError) as caught, sentences(RuntimeError):
        raise FileNotFoundError(2, "No such file or directory", "/secret/path")
    assert "secret" not in str(caught.value) and "No such file" in str(caught.value)
    for error, whose in ((MemoryError(), "The machine"), (torch.OutOfMemoryError("/secret"), "The graphics card")):
        with (
            pytest.raises(RuntimeError, match=f"^{whose} does not have enough memory for this: ask for fewer"),
            sentences(RuntimeError),
        ):
            raise error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ("MemoryError()", "the machine does not have enough memory for this: set a smaller data.batch_size"),
        ("FileNotFoundError(2, 'No such file')", "a file could not be read or written: No such file"),
    ],
)
def test_a_run_of_the_app_that_fails_says_why_in_one_sentence(error: str, told: str, tmp_path: Path) -> None:
    code = f"""
import erase.app.worker as worker
def fail(*_):
    raise {error}
worker.run = fail
worker.main()
"""
    said, errors = _worker(code, tmp_path, leave=False)
    assert told in said and "Traceback" not in errors, errors[-2000:]


def test_a_run_that_is_stopped_while_it_says_how_it_ended_still_says_it(tmp_path: Path) -> None:
    code = """
import time
import erase.app.worker as worker
worker.run = lambda *_: {"skipped": []}
say = worker.Reporter.say
def slowly(self, event, **facts):
    say(self, "ending")
    time.sleep(2)
    say(self, event, **facts)
worker.Reporter.say = slowly
worker.main()
"""
    said, errors = _worker(code, tmp_path, leave=True)
    assert json.loads(said.splitlines()[-1]) == {"event": "done", "skipped": []} and not errors


@pytest.mark.parametrize(("patience", "cut"), [(10, False), (0.2, True)])
def test_a_run_is_stopped_between_two_steps_and_in_the_midst_of_one_only_if_that_takes_too_long(
    patience: float, cut: bool, tmp_path: Path
) -> None:
    """In the midst of a step the weights are of no step, and a state of them is not kept."""
    code = f"""
import time
import erase.app.worker as worker
worker.STEP_S = {patience}
def run(order, reporter):
    for step in range(20):
        reporter.advanced("train", step, 20, {{"loss": 1.0}})
        try:
            time.sleep(1)
        except KeyboardInterrupt:
            reporter.note("cut")
            raise
worker.run = run
worker.main()
"""
    said, errors = _worker(code, tmp_path, leave=True)
    events = [json.loads(line)["event"] for line in said.splitlines()]
    assert events[-1] == "stopped" and ("note" in events) is cut and len(events) < 8 and not errors


def _worker(code: str, folder: Path, leave: bool) -> tuple[str, str]:
    """What the worker prints after its order, and on stderr; `leave`: it is stopped, by the end of stdin, at its first line."""
    order = {"preview_every": 1, "blur": [], "screen": True, "out": str(folder)}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdin and worker.stdout and worker.stderr
        worker.stdin.write(json.dumps(order) + "\n")
        worker.stdin.flush()
        said = worker.stdout.readline()
        if leave:
            worker.stdin.close()
        said += worker.stdout.read()
        return said, worker.stderr.read()


# --- what may be opened


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A runs folder with one run, an unfinished one, a link that leads out, and a run outside."""
    for name in ("runs/dog", "outside"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "patch.safetensors").write_bytes(b"x")
        (tmp_path / name / "run.json").write_text("{}")
        (tmp_path / name / "config.yaml").write_text("model: emoji\n")
    (tmp_path / "runs" / "unfinished").mkdir()
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "outside")
    return tmp_path


def test_only_runs_of_the_folder_and_those_named_at_start_are_opened(folder: Path) -> None:
    found = catalog([], folder / "runs")
    assert list(found.runs()) == ["dog"] and found.models == {"emoji": "emoji"}
    for name in ("outside", "link", "unfinished", "../outside", str(folder / "outside"), "/etc", "", None, 7, [], {}, ["dog"]):
        with pytest.raises(ValueError, match="There is no run"):
            found.run(name)
    named = catalog([str(folder / "outside")], folder / "runs")
    assert set(named.runs()) == {"dog", "outside"} and named.models == {"emoji": "emoji"}


def test_only_models_named_at_start_are_opened(folder: Path) -> None:
    found = catalog(["emoji", "owner/name"], folder / "runs")
    assert found.model("owner/name") == "owner/name"
    for name in ("/etc/passwd", "../..", str(folder), None, [], {"emoji": 1}):
        with pytest.raises(ValueError, match="There is no model"):
            found.model(name)
    (folder / "runs" / "unfinished" / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="not finished"):
        catalog([str(folder / "runs" / "unfinished")], folder / "runs")


def test_a_run_that_is_taken_away_while_the_runs_are_listed_is_not_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(folder / "runs" / "dog", folder / "runs" / "cat")
    is_dir = Path.is_dir

    def taken_away(path: Path, **more: Any) -> bool:
        found = is_dir(path, **more)
        if path.name == "cat":
            shutil.rmtree(path, ignore_errors=True)
        return found

    monkeypatch.setattr(Path, "is_dir", taken_away)
    assert list(catalog([], folder / "runs").runs()) == ["dog"]
    assert not (folder / "runs" / "cat").exists()


def test_a_run_that_comes_later_is_found(folder: Path) -> None:
    found = catalog([], folder / "runs")
    (folder / "runs" / "unfinished" / "patch.safetensors").write_bytes(b"x")
    assert set(found.runs()) == {"dog", "unfinished"}


@pytest.mark.parametrize("text", ["", "model: [", "- a", "concept: dog", "model: 7"])
def test_a_run_whose_config_is_damaged_is_named_at_start(text: str, folder: Path) -> None:
    (folder / "outside" / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"outside/config\.yaml"):
        catalog([str(folder / "outside")], folder / "runs")


@pytest.mark.parametrize("port", ["0", "70000"])
def test_a_port_that_is_none_is_refused_in_a_sentence(port: str) -> None:
    from erase.cli import app

    done = CliRunner().invoke(app, ["app", "--port", port])
    assert done.exit_code == 2 and "--port" in done.output and "Traceback" not in done.output


def test_a_run_that_made_a_new_model_in_place_of_a_patch_can_be_looked_at(folder: Path) -> None:
    remade = folder / "runs" / "unfinished"
    (remade / "model").mkdir()
    (remade / "run.json").write_text("{}")
    (remade / "config.yaml").write_text("model: emoji\n")
    with pytest.raises(ValueError, match="not finished"):
        catalog([str(remade)], folder / "runs")
    audit = {"changed_outside_mask": 0, "changed_inside_mask_share": 1.0, "num_salient": 2, "num_weights": 2}
    results = {"patch": False, "audit": audit, "density": 1.0, "detector": None}
    (remade / "results.json").write_text(json.dumps(results))
    for found in (catalog([], folder / "runs"), catalog([str(remade)], folder / "runs")):
        assert list(found.runs()) == ["dog"] and set(found.finished()) == {"dog", "unfinished"}
        assert found.look("unfinished").samefile(remade)
        with pytest.raises(ValueError, match="There is no run"):
            found.run("unfinished")  # there is nothing to put on a model
    assert "Weights changed: 100.00 % of 2 (no mask)" in explore.metrics(remade)
    files = explore.Files()
    with pytest.raises(ValueError, match="made no patch"):
        files.give(remade, "patch")
    (remade / "report.html").write_text("told")
    assert files.give(remade, "report").read_text() == "told"
    files.close()


# --- the form


def test_the_form_has_the_configs_own_words_and_ranges() -> None:
    density = form.main_settings()[0]
    assert density.key == "saliency.density" and (density.low, density.high) == (0, 1)
    described = type(RunConfig(concept="dog").saliency).model_fields["density"].description
    assert described and density.info == " ".join(described.split())
    assert density.info.startswith("Fraction of the denoiser's weights allowed to change")
    for setting in [*form.main_settings(), *(s for group in form.method_settings().values() for s in group)]:
        assert setting.info.endswith(".") and setting.kind in ("int", "float", "bool", "choice", "text")
    relabel = next(s for s in form.method_settings()["salun"] if s.key == "method.relabel")
    assert relabel.choices == ("random_label", "concept_remap")


@pytest.mark.parametrize("concept", ["dog", "neon", "cat; church"])
def test_an_untouched_form_is_the_command_lines_own_run(concept: str) -> None:
    names = form.concepts_in(concept)
    wanted = resolve({"concept": names if len(names) > 1 else names[0]}, [])
    values = {
        s.key: form.shown(at(wanted.model_dump(mode="json"), s.key))
        for s in (*form.main_settings(), *form.method_settings()["salun"])
    }
    chosen = form.changed(concept, "emoji", {}, "salun", values, LIMITS)
    assert set(chosen) == {"concept"}  # nothing but the concept: so the run has the command line's folder, too
    assert resolve(chosen, []) == wanted


def test_what_is_changed_in_the_form_is_what_differs_in_the_config() -> None:
    chosen = form.changed("dog", "emoji", {}, "salun", {"train.steps": 7.0, "seed": 3, "method.anchor": "rabbit"}, LIMITS)
    assert chosen == {"concept": "dog", "train.steps": 7, "seed": 3, "method.anchor": "rabbit"}
    assert resolve(chosen, []).train.steps == 7


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"train.steps": 1_000_000}, "from 1 to 5000"),
        ({"train.steps": 2.5}, "whole number"),
        ({"seed": "x"}, "Seed. is x"),
    ],
)
def test_a_field_beyond_its_range_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        form.changed("dog", "emoji", {}, "salun", values, LIMITS)
    with pytest.raises(ValueError, match="There is no method"):
        form.changed("dog", "emoji", {}, "../x", {}, LIMITS)
    with pytest.raises(ValueError, match="concept is empty"):
        form.changed(" ; ", "emoji", {}, "salun", {}, LIMITS)


@pytest.mark.parametrize(
    "line",
    [
        *("data.forget_images=/etc", "data.retain_images =/etc", "method.data=/etc", "method.autoencoder=/etc"),
        *("method.data.x=/etc", "load.cache_dir=/tmp", "model=/etc", "concept=x", "nonsense", "train.steps=*a"),
    ],
)
def test_other_settings_name_no_path_and_no_other_model(line: str) -> None:
    with pytest.raises(ValueError, match=r"cannot be set on the page|not of the form"):
        form.assignments(line, LIMITS)


def test_whatever_may_be_a_path_is_closed_to_the_page_new_fields_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert form.closed() == {"data.forget_images", "data.retain_images", "method.data", "method.autoencoder"}
    boxes = {setting.key for group in form.method_settings().values() for setting in group}
    assert boxes.isdisjoint(form.closed()) and {"method.anchor", "method.processes"} <= boxes

    class Inner(Config):
        name: str = "x"

    class New(Config):
        name: Literal["new"] = "new"
        folder: Path = Path()
        file: str = ""
        several: tuple[str, ...] | None = None
        inside: Inner = Inner()
        word: Literal["a", "b"] = "a"
        number: int | None = None

    monkeypatch.setattr(form, "method_configs", lambda: [New])
    assert {key for key in form.closed.__wrapped__() if key.startswith("method.")} == {
        *("method.folder", "method.file", "method.several", "method.inside")
    }


@pytest.mark.parametrize(
    "line",
    ["method.processes=9", "method.threads=5000", "method.samples=150001", "method.name=scissorhands method.rounds=5001"],
)
def test_what_a_method_would_take_of_the_machine_is_limited(line: str) -> None:
    lines = form.assignments("\n".join(["method.name=retrain", *line.split()]), LIMITS)
    with pytest.raises(ValueError, match="the page allows at most"):
        form.check(resolve({"concept": "dog"}, lines), LIMITS)
    values = {key: float(number) for key, _, number in (line.split()[-1].partition("="),)}
    if "samples" not in line:  # it has no box
        with pytest.raises(ValueError, match="must be a number from 1 to"):
            form.changed("dog", "emoji", {}, "scissorhands" if "rounds" in line else "retrain", values, LIMITS)


def test_other_settings_are_the_command_lines_and_stay_within_the_limits() -> None:
    lines = form.assignments("train.warmup_steps=1\n\n data.num_forget=4 ", LIMITS)
    assert lines == ["train.warmup_steps=1", "data.num_forget=4"]
    form.check(resolve({"concept": "dog"}, lines), LIMITS)
    with pytest.raises(ValueError, match=r"train.steps is 9999; the page allows at most 5000"):
        form.check(resolve({"concept": "dog"}, ["train.steps=9999"]), LIMITS)


# --- the studio


def _patch(family: StableDiffusion, seed: int) -> Patch:
    """New values for a tenth of every weight that sees the prompt."""
    generator = torch.Generator().manual_seed(seed)
    values, positions, shapes = {}, {}, {}
    for name, parameter in family.denoiser.named_parameters():
        if "attn2" in name and parameter.ndim == 2:
            chosen = torch.randperm(parameter.numel(), generator=generator)[: parameter.numel() // 10].sort().values
            positions[name], shapes[name] = chosen, tuple(parameter.shape)
            values[name] = parameter.detach().reshape(-1)[chosen] + torch.randn(len(chosen), generator=generator)
    return Patch(values, positions, shapes, {"base": model_hash("emoji"), "concept": "dog", "model": "emoji"})


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    """The embedded model with two runs' patches at hand."""
    folder = tmp_path_factory.mktemp("studio")
    found = Studio(Catalog({"emoji": "emoji"}, {}, folder), LoadConfig())
    family = found.load("emoji").family
    for seed, name in enumerate(("dog", "cat")):
        save_patch(_patch(family, seed), folder / name / "patch.safetensors")
    stranger = _patch(family, 2)
    stranger.provenance["base"] = "0" * 64
    save_patch(stranger, folder / "stranger" / "patch.safetensors")
    return found


ASK = Ask("a dog, neon style", (0,), 3, 3.0)
BASE = Scene("emoji")


def test_at_strength_0_and_after_undo_the_weights_and_the_picture_are_the_bases_bit_for_bit(studio: Studio) -> None:
    fresh = load("emoji")
    wanted = weights_hash(fresh.denoiser)
    loaded = studio.load("emoji")
    before = studio.draw(BASE, ASK)
    changed = studio.draw(Scene("emoji", (("dog", 1.0),)), ASK)
    assert (changed.pixels[0] != before.pixels[0]).any() and weights_hash(loaded.family.denoiser) != wanted
    studio._kept.clear()  # the weights must answer, not what is kept
    again = studio.draw(Scene("emoji", (("dog", 0.0),)), ASK)
    assert not again.kept and (again.pixels[0] == before.pixels[0]).all()
    assert weights_hash(loaded.family.denoiser) == wanted


def test_a_patch_of_the_same_weights_in_another_file_can_be_dialled(studio: Studio, tmp_path: Path) -> None:
    loaded = studio.load("emoji")
    loaded.undo()
    same = _patch(load("emoji"), 0)
    same.provenance.update(base="1" * 64, weights=pipeline_hash(loaded.family.pipeline))
    save_patch(same, tmp_path / "patch.safetensors")
    studio.draw(Scene("emoji", (("cat", 1.0),)), ASK)  # another patch is on: the base's weights are what counts
    loaded.dial([tmp_path / "patch.safetensors"], [1.0])
    dialled = weights_hash(loaded.family.denoiser)
    loaded.dial([studio.catalog.folder / "dog" / "patch.safetensors"], [1.0])
    assert weights_hash(loaded.family.denoiser) == dialled


def test_a_dialled_picture_is_that_of_the_patch_applied_anew(studio: Studio) -> None:
    from erase.app.studio import pixels_of
    from erase.applied_patch import AppliedPatch
    from erase.patch import load_patch

    scene = Scene("emoji", (("dog", 0.5), ("cat", 1.5)))
    studio.draw(Scene("emoji", (("dog", 1.0), ("cat", 0.25))), ASK)
    found = studio.draw(scene, ASK)
    fresh = load("emoji")
    paths = [studio.catalog.run(name) / "patch.safetensors" for name in ("dog", "cat")]
    AppliedPatch(fresh.denoiser, [load_patch(path) for path in paths], [0.5, 1.5])
    latents = fresh.generate([ASK.prompt], [0], num_inference_steps=3, guidance_scale=3.0, batch_size=1)
    assert (found.pixels[0] == pixels_of(fresh, latents)[0]).all()


def test_a_patch_of_another_base_is_refused_and_changes_nothing(studio: Studio) -> None:
    before = studio.draw(BASE, ASK)
    with pytest.raises(ValueError, match="made on a different base"):
        studio.draw(Scene("emoji", (("stranger", 1.0),)), ASK)
    studio._kept.clear()
    assert (studio.draw(BASE, ASK).pixels[0] == before.pixels[0]).all()


def test_many_threads_with_different_dials_each_get_their_own_picture(studio: Studio) -> None:
    scenes = [Scene("emoji", (("dog", strength),)) for strength in (0.0, 0.5, 1.0)] + [Scene("emoji", (("cat", 1.0),))]
    wanted = [studio.draw(scene, ASK).pixels[0] for scene in scenes]
    studio._kept.clear()
    found: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda k=k: found.__setitem__(k, studio.draw(scenes[k % 4], ASK).pixels[0])) for k in range(8)
    ]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert all((found[k] == wanted[k % 4]).all() for k in range(8))


def test_whoever_asks_one_thread_draws_and_it_ends_with_the_studio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The C library keeps memory for each thread that ever drew: with a thread for each request the app grew by a sixth."""
    monkeypatch.setattr("erase.app.studio._draw", lambda *_: SimpleNamespace(finished=True, thread=threading.current_thread()))
    monkeypatch.setattr(Studio, "_keep", lambda *_: None)
    monkeypatch.setattr(Studio, "_loaded", lambda *_: Loaded(None, ""))
    monkeypatch.setattr(Loaded, "dial", lambda *_: None)
    small = Studio(Catalog({"emoji": "emoji"}, {}, tmp_path), LoadConfig())
    drew: set[Any] = set()
    for k in range(4):
        asks = threading.Thread(target=lambda k=k, small=small: drew.add(small.draw(BASE, Ask("a dog", (k,), 1, 1.0)).thread))
        asks.start()
        asks.join()
    [thread] = drew
    del small, asks
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()


def test_what_was_drawn_is_kept_until_the_patch_changes(studio: Studio) -> None:
    scene = Scene("emoji", (("cat", 0.75),))
    first, second = studio.draw(scene, ASK), studio.draw(scene, ASK)
    assert not first.kept and second.kept and second.seconds == first.seconds
    path = studio.catalog.run("cat") / "patch.safetensors"
    save_patch(_patch(load("emoji"), 5), path)
    third = studio.draw(scene, ASK)
    assert not third.kept and (third.pixels[0] != first.pixels[0]).any()


def test_a_slow_picture_is_seen_on_its_way_and_ends_when_nobody_looks(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    family, steps = studio.load("emoji").family, []
    predict = family.pipeline.unet.forward

    def slow(*arguments: Any, **more: Any) -> Any:
        steps.append(time.monotonic())
        time.sleep(0.25)
        return predict(*arguments, **more)

    monkeypatch.setattr(family.pipeline.unet, "forward", slow)
    stream = studio.stream(BASE, Ask("a church", (3,), 60, 3.0))
    first = next(stream)
    assert not first.finished and first.pixels[0].shape == (48, 48, 3)
    stream.close()
    time.sleep(0.6)
    assert len(steps) < 30
    monkeypatch.undo()
    assert studio.draw(BASE, Ask("a church", (3,), 2, 3.0)).finished


def test_two_patches_with_one_at_0_are_the_other_alone(studio: Studio) -> None:
    one = studio.draw(Scene("emoji", (("dog", 1.0), ("cat", 0.0))), ASK)
    assert (one.pixels[0] == studio.draw(Scene("emoji", (("dog", 1.0),)), ASK).pixels[0]).all()


def test_a_models_patches_stay_at_hand_when_it_is_dialled_to_the_base(studio: Studio) -> None:
    loaded: Loaded = studio.load("emoji")
    studio.draw(Scene("emoji", (("dog", 1.0),)), Ask("a cat", (0,), 1, 1.0))
    applied = loaded.applied
    studio.draw(BASE, Ask("a cat", (1,), 1, 1.0))
    studio.draw(Scene("emoji", (("dog", 0.3),)), Ask("a cat", (2,), 1, 1.0))
    assert loaded.applied is applied and applied is not None and applied.strengths == (0.3,)


def test_a_model_draws_on_as_many_threads_as_suit_it_whatever_was_drawn_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = [2]
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    found = Studio(Catalog({"small": "a", "large": "b"}, {}, tmp_path), LoadConfig())
    for name, num in (("small", 1000), ("large", SMALL)):
        weights = torch.nn.Parameter(torch.empty(num, device="meta"))
        found._models[name] = Loaded(SimpleNamespace(denoiser=SimpleNamespace(parameters=lambda w=weights: [w])), "")  # type: ignore[arg-type]
    for name, num in (("small", 1), ("large", 2), ("small", 1), ("small", 1), ("large", 2)):
        found.load(name)
        assert threads[-1] == num
    with found.base("small"):  # a plan's times are those of the run, which has a process of its own
        assert threads[-1] == 2


# --- the screen


def test_the_judge_flags_what_is_to_be_blurred_and_nothing_else(studio: Studio) -> None:
    family = studio.load("emoji").family
    drawn = [studio.draw(BASE, Ask(text, (0,), 12, 3.0)).pixels[0] for text in ("a dog, 3d style", "a castle, 3d style")]
    dog, castle = Screen(("dog",)).look(family, drawn)
    assert dog == Sight("dog, 3d", "it shows dog") and castle == Sight("castle, 3d")
    assert [s.flagged for s in Screen(("dog",), on=False).look(family, drawn)] == [None, None]


def test_an_open_models_pictures_are_blurred_where_no_detector_is_at_hand(
    new_family: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = new_family()
    family.vocabulary = None
    pixels = [np.zeros((16, 16, 3), np.uint8)]
    monkeypatch.setitem(sys.modules, "nudenet", None)
    assert Screen().look(family, pixels) == [Sight("not screened", "NudeNet is not installed")]
    assert Screen(on=False).look(family, pixels) == [Sight("not screened", None)]


def test_what_the_judge_cannot_name_is_said_in_words() -> None:
    screen = Screen(("dog",))
    assert screen._judged({"object": "dog", "style": None}) == Sight("dog, in no style that the judge knows", "it shows dog")
    assert screen._judged({"object": None, "style": "3d"}) == Sight("nothing that the judge knows", None)


def test_nudenets_findings_are_flagged_at_the_screens_threshold() -> None:
    screen = Screen()
    assert screen._nudity({"detections": [["FEMALE_BREAST_EXPOSED", 0.31]]}) == Sight("breasts, female", "nudity")
    assert screen._nudity({"detections": [["FEMALE_BREAST_EXPOSED", 0.29], ["FEET_EXPOSED", 0.9]]}).flagged is None


# --- what is shown


def test_every_text_from_outside_is_escaped() -> None:
    nasty = '<img src=x onerror=alert(1)>"'
    job = Job(nasty, Path(nasty), {}, 0, state="failed", sentence=nasty, notes=[nasty], previews=[(1, [nasty], [])])
    pixels = np.zeros((48, 48, 3), np.uint8)
    parts = [part([job]) for part in (board.status, board.over)]
    running = Job(nasty, Path(nasty), {}, 0, state="running", notes=[nasty], previews=[(1, [nasty], [])])
    parts += [part([running]) for part in (board.status, board.under_way, board.pictures)]
    for html in (*parts, table([nasty], [[nasty]]), shot(pixels, nasty, sight=Sight(nasty, nasty)), shot(pixels, nasty)):
        assert "<img src=x" not in html and "&lt;img" in html
        assert "onerror=alert(1)>" not in html


def test_a_small_picture_is_enlarged_by_whole_pixels_and_a_blurred_one_shows_nothing() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    large = enlarged(pixels)
    assert large.shape == (384, 384, 3) and (large[::8, ::8] == pixels).all() and (large[7::8, 7::8] == pixels).all()
    assert enlarged(np.zeros((512, 512, 3), np.uint8)).shape == (512, 512, 3)
    assert np.asarray(blurred(large)).std() < 0.1 * large.std()


def test_a_manifest_that_leads_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    row = {
        "prompt": "a dog",
        "seed": 1,
        "guidance": 3,
        "steps": 1,
        "object": "dog",
        "style": "neon",
        "model": "x",
        "sha256": "",
    }
    for side in ("base", "erased"):
        (tmp_path / "pictures" / side).mkdir(parents=True)
        line = json.dumps(row | {"file": "../../secret.png", "batch_size": 1})
        (tmp_path / "pictures" / side / "manifest.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match="draw the pictures again"):
        explore.cells(tmp_path)


@pytest.mark.parametrize(
    ("density", "num_salient", "words"),
    [
        (0.5, 1, "Weights changed outside the mask: 0; inside: 100.00 % of 1 (of 2)."),
        (1.0, 2, "Weights changed: 100.00 % of 2 (no mask)."),
        (1.0, 1, "Weights changed outside what the method edits: 0; inside: 100.00 % of 1 (of 2; no mask)."),
    ],
)
def test_the_measures_tell_of_a_mask_where_there_was_one(density: float, num_salient: int, words: str, tmp_path: Path) -> None:
    audit = {"changed_outside_mask": 0, "changed_inside_mask_share": 1.0, "num_salient": num_salient, "num_weights": 2}
    (tmp_path / "results.json").write_text(json.dumps({"audit": audit, "density": density, "detector": None}))
    assert words in explore.metrics(tmp_path)


def pictured(run: Path, asked: list[tuple[str, str, str]]) -> None:
    """A run's pictures of each (object, style, role), base and erased."""
    for side in ("base", "erased"):
        (run / "pictures" / side).mkdir(parents=True)
        rows = []
        for k, (name, style, role) in enumerate(asked):
            Image.new("RGB", (16, 16)).save(run / "pictures" / side / f"{k}.png")
            row = {"prompt": f"a {name}, {style} style", "seed": k, "guidance": 3, "steps": 1, "object": name, "style": style}
            rows.append(json.dumps(row | {"role": role, "file": f"{k}.png", "model": "x", "sha256": "", "batch_size": 1}))
        (run / "pictures" / side / "manifest.jsonl").write_text("\n".join(rows) + "\n")


@pytest.mark.parametrize(
    ("erased", "titles", "num"),
    [
        ([("dog", "3d"), ("dog", "neon")], ["dog <small>"], 2),
        ([("dog", "neon"), ("cat", "neon")], ["neon <small>"], 2),
        ([("dog", "neon")], [], 1),
    ],
    ids=["an object", "a style", "an object in a style"],
)
def test_the_gallery_says_which_is_the_base_and_marks_what_was_erased(
    erased: list[tuple[str, str]], titles: list[str], num: int, tmp_path: Path
) -> None:
    pairs = [("dog", "3d"), ("dog", "neon"), ("cat", "neon"), ("cat", "3d"), ("cat", "line art")]
    pictured(tmp_path, [(*pair, "forget" if pair in erased else "retain") for pair in pairs])
    html = explore.gallery(tmp_path, Screen(), None)
    assert "Left: base, right: erased." in html
    assert [title for title in ("dog <small>", "cat <small>", "3d <small>", "neon <small>") if title in html] == titles
    assert html.count('class="cell erased"') == num and html.count("<p>line art</p>") == 1
    assert html.count("<div></div>") == 1, (
        "the place of a dog in line art stays empty, so that the columns are those of the head"
    )


def test_explore_says_the_gates_verdict(audited_run: Callable[..., None], tmp_path: Path) -> None:
    shutil.copytree(EMOJI_WEIGHTS, tmp_path / "model")
    proof = {"changed_outside_mask": 0, "changed_inside_mask_share": 1.0, "num_salient": 1, "num_weights": 2}
    (tmp_path / "results.json").write_text(json.dumps({"audit": proof, "density": 0.5, "detector": None}))
    assert "Not audited: “erase audit”" in explore.metrics(tmp_path)
    audited_run(tmp_path, (False,) * 4)
    assert '<p class="note ">Audit passed: dog is suppressed' in explore.metrics(tmp_path)
    audited_run(tmp_path, (True, False, False, False))
    assert '<p class="note bad">Audit FAILED: ' in explore.metrics(tmp_path)
    (tmp_path / "audit" / "audit.json").write_text("{")
    assert "Not audited: the audit in its folder is of another version" in explore.metrics(tmp_path)


def test_the_label_of_kept_prompts_is_what_is_counted() -> None:
    """A picture counts where either is not known (eval.measure), not only where both are."""
    assert explore.LABELS["none_retained"] == "Kept prompts that show no known object or no known style"


# --- the queue


def test_a_run_that_cannot_be_is_a_sentence_and_one_that_waits_can_be_cancelled(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path, 4, Screen())
    bad = jobs.order({"concept": "dog", "model": str(tmp_path / "nowhere")}, "bad", 0)
    third = jobs.order({"concept": "cat"}, "third", 0)
    assert jobs.cancel(third.id).state == "cancelled"
    with pytest.raises(ValueError, match="no such run to cancel"):
        jobs.cancel(third.id)
    deadline = time.monotonic() + 900  # its process imports torch, on whatever machine
    while time.monotonic() < deadline and bad.state != "failed":
        time.sleep(0.2)
    jobs.close()
    assert bad.sentence.startswith("there is no model")
    assert not (tmp_path / "third").exists()


def test_the_queue_is_limited_and_takes_no_run_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = Jobs(tmp_path, 2, Screen())
    monkeypatch.setattr(jobs, "_work", lambda: None)
    jobs.order({}, "a", 0)
    with pytest.raises(ValueError, match="already running or waiting"):
        jobs.order({}, "a", 0)
    jobs.order({}, "b", 0)
    jobs.order({}, "c", 0)
    with pytest.raises(ValueError, match="2 runs are already waiting"):
        jobs.order({}, "d", 0)


def test_a_run_under_way_stays_on_the_board_whatever_is_ordered_and_cancelled_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else nobody could cancel it any more, and the same run could be ordered a second time."""
    jobs = Jobs(tmp_path, 2, Screen())
    monkeypatch.setattr(jobs, "_work", lambda: None)
    first = jobs.order({}, "first", 0)
    for number in range(50):
        jobs.cancel(jobs.order({}, f"run{number}", 0).id)
    assert first in jobs.all() and len(jobs.all()) == 1 + REMEMBERED + 1, "the last was cancelled after it was ordered"
    assert jobs.all()[0].out.name == "run49"
    with pytest.raises(ValueError, match="already running or waiting"):
        jobs.order({}, "first", 0)
    assert jobs.cancel(first.id) is first and first.state == "cancelled"


def test_the_vocabulary_and_every_shipped_config_fit_the_form() -> None:
    for name in ("dog", "neon", f"a {EMOJI_VOCABULARY.objects[0]}, neon style"):
        config: RunConfig = resolve({"concept": name}, [])
        form.check(config, LIMITS)


def test_a_resumed_run_draws_no_preview_of_steps_told_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = json.dumps([{"step": k} for k in range(7)])
    write_safetensors({"x": torch.zeros(1)}, tmp_path / "state" / "a.safetensors", {"records": records})
    reporter = Reporter(io.StringIO(), 5, Screen(), tmp_path)
    drawn: list[int] = []
    monkeypatch.setattr(reporter, "preview", lambda: drawn.append(reporter._step))
    with reporter.stage("train", 12) as bar:
        for _ in range(12):
            bar.advance(1, loss=0.5)
    assert drawn == [0, 10, 12]


@pytest.mark.parametrize(
    ("code", "state"),
    [
        ('print(\'{"event": "done"}\')', "done"),
        ("import os; os._exit(7)", "failed"),
        ("print('{\"event\": \"prev', end='')", "failed"),
        (None, "failed"),
    ],
    ids=["done", "dead", "dead in the midst of a line", "never started"],
)
def test_however_a_run_ends_no_file_stays_open_and_the_next_one_begins(
    code: str | None, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pipes to its process are closed, not left to be collected; the thread of the queue lives on."""
    processes: list[Any] = []
    codes = [code, 'print(\'{"event": "done"}\')']

    def start() -> Any:
        if (code := codes.pop(0)) is None:
            raise OSError(12, "Cannot allocate memory")
        command = [sys.executable, "-c", f"input(); {code}"]
        processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return processes[-1]

    monkeypatch.setattr("erase.app.jobs._start", start)
    jobs = Jobs(tmp_path, 4, Screen())
    ordered = [jobs.order({}, name, 0) for name in ("a", "b")]
    deadline = time.monotonic() + 60
    while any(job.process is not None or job.state in ("queued", "running") for job in ordered):
        assert time.monotonic() < deadline, [job.state for job in ordered]
        time.sleep(0.02)
    jobs.close()
    assert [job.state for job in ordered] == [state, "done"]
    assert ordered[0].sentence.startswith("No process could be started" if code is None else "") and processes
    assert all(process.stdout.closed and process.stdin.closed for process in processes)


def test_a_run_told_to_stop_stops_at_its_next_word_even_if_the_interrupt_was_lost(tmp_path: Path) -> None:
    reporter = Reporter(io.StringIO(), 0, Screen(), tmp_path)
    with reporter.stage("train", 3) as bar:
        bar.advance(loss=1.0)
        reporter.stopping = True
        with pytest.raises(KeyboardInterrupt):
            bar.advance(loss=1.0)
    with pytest.raises(KeyboardInterrupt), reporter.stage("export", 1):
        pass
