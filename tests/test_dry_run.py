"""What a dry run tells: every prompt that the run would use and no other, and what would refuse the run itself."""

import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from erase import dry_run
from erase.dry_run import prompts_of, report, shortened
from erase.files import write_text
from erase.plan import Plan, plan
from erase.recipes import resolve
from pipelines.stable_diffusion import StableDiffusion


@pytest.fixture
def planned(tiny_family: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the report of a run on the tiny model; its cost is not measured."""
    monkeypatch.setattr(dry_run, "estimate", lambda *_: {"total_s": 1.0})

    def make(out: Path, *settings: str) -> tuple[Plan, dict[str, Any]]:
        found = plan(resolve({"concept": "dog"}, list(settings)), tiny_family)
        return found, report(found, tiny_family, out)

    return make


def test_every_prompt_is_there_in_order_and_a_person_sees_how_many(planned: Any, tmp_path: Path) -> None:
    found, told = planned(tmp_path / "run")
    prompts, data = told["prompts"], found.data
    assert [row["prompt"] for row in prompts["forget"]] == [prompt.text for prompt in data.forget]
    assert [row["becomes"] for row in prompts["forget"]] == [[other.text for other in row] for row in data.relabelled]
    assert prompts["retain"] == [prompt.text for prompt in data.retain]
    assert prompts["evaluation_forget"] == [prompt.text for prompt in found.forget_evaluation]
    assert prompts["evaluation_retain"] == [prompt.text for prompt in found.retain_evaluation]
    few = shortened(told)["prompts"]
    assert {name: part["number"] for name, part in few.items()} == {name: len(rows) for name, rows in prompts.items()}
    assert few["forget"]["first"][0] == "a dog, 3d style -> a cat, 3d style" and len(few["retain"]["first"]) == 3
    at_random = shortened(planned(tmp_path / "run", "method.relabel=random_label")[1])["prompts"]
    assert at_random["forget"]["first"][0].endswith(" or 22 others")
    assert not list(tmp_path.iterdir())


def test_what_the_method_does_not_do_is_not_told(planned: Any, tmp_path: Path, tiny_family: StableDiffusion) -> None:
    """ESD turns the concept into nothing else, a retrained model draws no pictures to learn from, no judge draws none."""
    esd = planned(tmp_path / "run", "method.name=esd")[1]
    assert esd["becomes"] == [] and esd["prompts"]["forget"][0] == {"prompt": "a dog, 3d style"}
    retrained = planned(tmp_path / "run", "method.name=retrain")[1]["prompts"]
    assert retrained["forget"] == retrained["retain"] == [] and retrained["evaluation_forget"]
    found = planned(tmp_path / "run")[0]
    tiny_family.vocabulary = None
    open_ended = prompts_of(found, tiny_family)
    assert open_ended["forget"] and open_ended["evaluation_forget"] == open_ended["evaluation_retain"] == []


def test_what_would_refuse_the_run_refuses_the_dry_run(planned: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of another run or of none, a file in its place, no leave to write, and a disk with too little room."""
    write_text("concept: dog\ntrain:\n  steps: 7\n", tmp_path / "other" / "config.yaml")
    write_text("mine", tmp_path / "mine" / "notes.txt")
    write_text("a file", tmp_path / "file")
    for name, words in [
        ("other", "holds a run with another config"),
        ("mine", "is not empty and not a run"),
        ("file", "cannot write to .*file is a file"),
        ("file/run", "cannot write to .*file is a file"),
    ]:
        with pytest.raises(ValueError, match=words):
            planned(tmp_path / name)
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(ValueError, match=r"cannot write to .*is not writable"):
        planned(tmp_path / "run")
    monkeypatch.undo()
    monkeypatch.setattr(dry_run, "estimate", lambda *_: {})
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 1000))
    with pytest.raises(ValueError, match=r"GB and its disk has 0\.00 GB free"):
        planned(tmp_path / "run")
    assert {path.name for path in tmp_path.iterdir()} == {"other", "mine", "file"}
