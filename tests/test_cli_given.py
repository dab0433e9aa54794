"""Options held against each other: what would do nothing or contradicts itself is refused, what means something is not."""

import sys
from pathlib import Path
from typing import Any

import pytest

from erase.cli_given import check_given, option
from erase.recipes import config_folder, resolve

CHURCH = config_folder() / "church.yaml"


def checked(given: dict[str, Any], settings: list[str], file: Path | None = None) -> None:
    check_given(given, settings, file, resolve(given, settings, file))


DOG = {"concept": "dog"}


@pytest.mark.parametrize(
    ("given", "settings", "words"),
    [
        (
            {"saliency.density": 0.2},
            ["saliency.density=0.1"],
            r"--density and --set saliency\.density contradict each other \(0\.2 and 0\.1\)",
        ),
        ({"saliency.density": 0.2}, ["saliency={density: 0.1}"], r"--density and --set saliency contradict each other"),
        ({"seed": 1}, ["seed=2"], "--seed and --set seed"),
        ({"method.name": "esd"}, ["method.name=uce"], r"--method and --set method\.name"),
        ({"method.name": "paper"}, ["recipe=reference-code"], r"--method and --set method\.name"),
        ({"method.anchor": "cat"}, ["method.anchor=horse"], "--anchor and --set"),
        ({"load.cache_dir": "a"}, ["load.cache_dir=b"], "--cache-dir and --set"),
        ({"saliency.density": 0.2}, ["saliency.method=none"], "--density has no effect without a mask"),
        ({}, ["saliency.density=0.2", "saliency.method=none"], r"--set saliency\.density has no effect without a mask"),
        ({"saliency.density": 0.2, "method.name": "retrain"}, [], "--density has no effect with retrain"),
        ({"method.anchor": "cat", "method.name": "paper"}, [], "--anchor has no effect where labels are drawn at random"),
        ({"method.anchor": "none"}, ["method.relabel=random_label"], "--anchor has no effect"),
        ({"method.name": "paper"}, ["method.anchor=cat"], r"--set method\.anchor has no effect"),
        ({"method.anchor": "cat", "method.name": "munba"}, ["method.relabel=random_label"], "--anchor has no effect"),
    ],
)
def test_what_would_do_nothing_or_contradicts_itself_is_refused(given: dict[str, Any], settings: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        checked(DOG | given, settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "settings"),
    [
        ({"saliency.density": 0.2, "seed": 3}, ["saliency.density=0.20", "seed=3", "saliency.rounds=1"]),
        ({"saliency.density": 0.2, "method.name": "uce"}, []),
        ({"method.name": "paper"}, ["recipe=paper"]),
        ({"method.name": "retrain"}, ["method.samples=64"]),
        ({}, ["saliency.method=none"]),
        ({"method.anchor": "cat"}, ["method.relabel=concept_remap"]),
        ({"method.anchor": "none", "model": "owner/name"}, ["method.relabel=random_label"]),
        (
            {"concept": ["dog", "cat"], "method.anchor": ["none", "none"], "model": "owner/name"},
            ["method.relabel=random_label"],
        ),
        ({"concept": ["dog", "cat"], "method.anchor": ["wolf", "horse"]}, ["method.anchor=[wolf, horse]"]),
    ],
)
def test_what_means_something_is_not(given: dict[str, Any], settings: list[str]) -> None:
    checked(DOG | given, settings)


@pytest.mark.parametrize(
    ("given", "settings", "kept"),
    [
        ({}, [], "method.anchor and prompts.neighbours"),
        ({"method.anchor": "cat"}, [], "prompts.neighbours"),
        ({}, ["prompts.neighbours=[wolf]"], "method.anchor"),
        ({"method.name": "esd"}, [], "prompts.neighbours"),
        ({"method.anchor": "cat"}, ["prompts.neighbours=[wolf]"], None),
        ({"method.anchor": "nearest"}, ["prompts={}"], None),
    ],
)
def test_a_config_of_another_concept_does_not_lend_its_anchor(
    given: dict[str, Any], settings: list[str], kept: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--concept dog --config church.yaml` made a castle of the dog; where nothing is the church's own, a note is enough."""
    if kept is None:
        checked(DOG | given, settings, CHURCH)
        assert "church.yaml is about church: dog is erased instead" in capsys.readouterr().err
        return
    with pytest.raises(ValueError, match=rf"church\.yaml is about church, and its {kept} would apply to dog"):
        checked(DOG | given, settings, CHURCH)


def test_a_config_of_another_kind_does_not_lend_its_kind() -> None:
    """A painter's manner is a style: a church erased with it would be one, too."""
    given = {"concept": "church", "method.anchor": "castle"}
    file = CHURCH.with_name("van-gogh.yaml")
    with pytest.raises(ValueError, match=r"and its prompts\.kind would apply to church: give it too"):
        checked(given, ["prompts.neighbours=[house]"], file)
    checked(given | {"prompts.kind": "object"}, ["prompts.neighbours=[house]"], file)


def test_a_config_of_the_same_concept_and_one_that_names_nothing_are_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checked({"concept": "Churches"}, [], CHURCH)
    checked({}, [], CHURCH)
    (tmp_path / "run.yaml").write_text("concept: church\nmethod: {anchor: nearest}\ntrain: {steps: 3}\n")
    (tmp_path / "none.yaml").write_text("train: {steps: 3}\n")
    checked(DOG, [], tmp_path / "none.yaml")
    assert capsys.readouterr().err == ""
    checked(DOG, [], tmp_path / "run.yaml")
    assert "dog is erased instead" in capsys.readouterr().err


def test_neighbours_that_a_recipe_chooses_are_not_the_configs_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`paper` protects the other nine of Imagenette's classes; they are chosen for the concept at hand."""
    (tmp_path / "run.yaml").write_text("concept: church\nmodel: owner/name\nrecipe: paper\n")
    checked({"concept": "tench"}, [], tmp_path / "run.yaml")
    assert "tench is erased instead" in capsys.readouterr().err


def test_given_prompts_of_another_concept_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"and prompts.becomes and prompts.retain and prompts.kind would apply to dog"):
        checked(DOG, [], config_folder() / "nudity.yaml")


def test_every_key_has_the_option_that_the_command_takes() -> None:
    from erase.cli import app

    taken = {name for command in app.registered_callback.callback.__annotations__.values() for name in names_of(command)}
    keys = ["model", "seed", "method.name", "method.anchor", "prompts.kind", "data.forget_images", "data.retain_images"]
    keys += ["saliency.density", "load.dtype", "load.device", "load.variant", "load.revision", "load.cache_dir", "concept"]
    assert {option(key) for key in keys} <= taken


def names_of(annotation: Any) -> tuple[str, ...]:
    found = getattr(annotation, "__metadata__", ())
    return (found[0].default, *found[0].param_decls) if found else ()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seed", "3", "--json", "audit", "run"], "--seed, --json before `audit` would have no effect"),
        (["--concept", "dog", "concepts"], "--concept before `concepts`"),
        (["--dry-run", "linear", "fit"], "--dry-run before `linear`"),
        (["--concept", "dog", "--method", "esd", "--anchor", "cat"], "method.anchor is not a setting (known: name, weights"),
        (["--concept", "dog", "--density", "0.2", "--set", "saliency.density=0.1"], "contradict each other"),
        (["--concept", "dog", "--config", str(CHURCH)], "church.yaml is about church"),
        (["dog", "--seed", "3"], "No such command 'dog'. Did you mean `erase --concept dog`?"),
        (["a", "dog"], "Did you mean `erase --concept 'a dog'`?"),
        (["--concept", "line", "art"], "Did you mean `erase --concept 'line art'`?"),
        (["aply", "dog"], "No such command 'aply'. Did you mean 'apply'"),
    ],
)
def test_the_command_refuses_with_exit_2(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from erase.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["erase", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "") and words in err and not list(tmp_path.iterdir())
