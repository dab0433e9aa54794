"""The table and the commands on a few rows of digits: what is written, what is gone on from, what is refused."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from erase.classification.bench import (
    ALL_METHODS,
    ROLES,
    Recipe,
    batches,
    bench,
    config_for,
    recipe_for,
    run_method,
    streams,
    summary,
    table_text,
)
from erase.classification.data import load_dataset
from erase.classification.methods import METHODS
from erase.classification.methods.relabel import other_labels
from erase.classification.models import build, load_classifier, save_classifier
from erase.classification.run import trained_as
from erase.classification.split import split_class
from erase.files import hash_of
from erase.lock import locked
from erase.saliency import load_mask

SMALL = Recipe.model_validate(
    {
        "rows": {"num_train": 200, "num_test": 100},
        "original": {"epochs": 3},
        "methods": {"salun": {"epochs": 1}, "ft": {"epochs": 1, "learning_rate": 0.05}},
    }
)


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(json.dumps({"default": SMALL.model_dump()}))
    return path


def erase(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """(exit code, stdout, stderr) of the real entry point."""
    from erase.cli import main

    monkeypatch.setattr(sys, "argv", ["erase", *arguments])
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    return code, *capsys.readouterr()


def test_a_table_goes_on_seed_by_seed_and_only_with_its_own_settings(tmp_path: Path) -> None:
    out = tmp_path / "table.json"
    first = bench("digits", forget_class=3, methods=["ft", "salun"], seeds=[0], out=out, recipe=SMALL)
    assert list(first["seeds"]["0"]) == ["original", "retrain", "ft", "salun"]
    marked = json.loads(out.read_text())
    marked["seeds"]["0"]["ft"]["ua"] = -1.0  # would be measured again if the seed were
    out.write_text(json.dumps(marked))
    both = bench("digits", forget_class=3, methods=["ft", "salun"], seeds=[0, 1], out=out, recipe=SMALL)
    assert both["seeds"]["0"]["ft"]["ua"] == -1.0 and set(both["seeds"]) == {"0", "1"}
    again = bench("digits", forget_class=3, methods=["ft", "salun"], seeds=[1], recipe=SMALL)["seeds"]["1"]
    for method, row in both["seeds"]["1"].items():
        assert {k: v for k, v in row.items() if k != "seconds"} == {k: v for k, v in again[method].items() if k != "seconds"}
    with pytest.raises(ValueError, match="table of other data, methods or settings"):
        bench("digits", forget_class=4, methods=["ft", "salun"], seeds=[0], out=out, recipe=SMALL)


def test_no_two_random_streams_of_a_run_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row's wrong label must not depend on its place in the shuffle, nor one seed's training on the next one's."""
    every = [seed for run in range(300) for role in ROLES for seed in streams(run, role)]
    assert len(set(every)) == len(every)
    used = []

    def spy(model, config, *, forget, retain, seed, **_):
        used.append([forget.generator.initial_seed(), retain.generator.initial_seed(), seed])

    monkeypatch.setattr("erase.classification.bench.unlearn", spy)
    digits = load_dataset("digits", num_train=60, num_test=20)
    for name in ("random_label", "retrain"):
        run_method(torch.nn.Linear(2, 2), config_for(SMALL, name), digits, split_class(digits, 3), SMALL, seed=5)
    assert used == [[s[0], s[1], s[3]] for s in (streams(5, "method"), streams(5, "retrain"))]


def test_wrong_labels_are_uniform_for_every_row() -> None:
    """Drawn once for the run, as with `redraw=false`: chi-square of 9 classes in 60 rows over 600 seeds."""
    digits = load_dataset("digits", num_train=60, num_test=20)
    counts = torch.zeros(60, 10)
    for seed in range(600):
        order, _, _, draws = streams(seed, "method")
        generator = torch.Generator().manual_seed(draws)
        numbered = replace(digits, inputs=torch.arange(60.0)[:, None])
        for rows, labels in batches(numbered, torch.arange(60), 16, order):
            counts[rows[:, 0].long(), other_labels(labels, 10, generator)] += 1
    own = torch.nn.functional.one_hot(digits.labels, 10).bool()
    assert not counts[own].any()
    squares = ((counts[~own] - 600 / 9) ** 2 / (600 / 9)).sum()
    assert squares < 480 + 5 * (2 * 480) ** 0.5, squares  # 60 x 8 degrees of freedom, five standard deviations


def test_methods_that_solve_for_one_matrix_see_the_same_pictures_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}
    monkeypatch.setattr(
        "erase.classification.bench.unlearn",
        lambda model, config, *, forget, retain, **_: seen.__setitem__(config.name, (forget.augment, retain.augment)),
    )
    digits = load_dataset("digits", num_train=60, num_test=20)
    recipe = Recipe.model_validate(SMALL.model_dump() | {"original": {"augment": True}})
    for name in ("ft", "retrain", "influence", "fisher"):
        run_method(torch.nn.Linear(2, 2), config_for(recipe, name), digits, split_class(digits, 3), recipe, seed=0)
    assert seen == {"ft": (True, True), "retrain": (True, True), "influence": (False, False), "fisher": (False, False)}


def test_an_audit_holds_the_files_against_what_it_is_told(recipe_file, tmp_path, monkeypatch, capsys, caplog) -> None:
    runs = {}
    for name, options in {"a": ["--forget-random", "0.1"], "b": ["--forget-ids", "1-20"], "c": ["--forget-class", "3"]}.items():
        runs[name] = tmp_path / name
        command = ["classifier", *options, "--seed", "3", "--compare", "--out", str(runs[name]), "--recipe", str(recipe_file)]
        assert erase(command, monkeypatch, capsys)[0] == 0
    a, b, c = (str(runs[name] / "erased.safetensors") for name in "abc")
    original = {name: str(runs[name] / "original.safetensors") for name in "abc"}
    said = ["--recipe", str(recipe_file), "--seed", "3"]
    retrained = str(runs["a"] / "retrained.safetensors")
    sound = ["audit", original["a"], a, "--reference", retrained, "--forget-random", "0.1", *said]
    assert erase(sound, monkeypatch, capsys)[0] == 0
    for command, sentence in (
        (
            ["audit", original["a"], a, "--forget-random", "0.1", "--recipe", str(recipe_file)],
            "was made to forget random 0.1, seed 3",
        ),
        (["audit", original["a"], a, "--forget-class", "5", *said], "was made to forget random 0.1, seed 3"),
        (["audit", a, original["a"], "--forget-random", "0.1", *said], "give the model from before"),
        (["audit", original["b"], b, "--forget-ids", "2-21", *said], "forget other rows than the options name"),
        (["audit", original["a"], a, "--reference", c, "--forget-random", "0.1", *said], "was made to forget class 3"),
    ):
        code, out, err = erase(command, monkeypatch, capsys)
        assert code == 2 and sentence in err and not out, err
    code, _, err = erase(
        ["classifier", "--model", a, "--forget-class", "5", "--out", str(tmp_path / "d"), "--recipe", str(recipe_file)],
        monkeypatch,
        capsys,
    )
    assert code == 0 and "was made by salun to forget random 0.1, seed 3" in caplog.text


def test_a_models_base_must_be_the_one_before(recipe_file, tmp_path, monkeypatch, capsys) -> None:
    for seed in ("1", "2"):
        command = [
            "classifier",
            "--forget-class",
            "3",
            "--seed",
            seed,
            "--out",
            str(tmp_path / seed),
            "--recipe",
            str(recipe_file),
        ]
        assert erase(command, monkeypatch, capsys)[0] == 0
    crossed = ["audit", str(tmp_path / "1" / "original.safetensors"), str(tmp_path / "2" / "erased.safetensors")]
    code, _, err = erase([*crossed, "--forget-class", "3", "--recipe", str(recipe_file)], monkeypatch, capsys)
    assert code == 2 and "was not made from" in err


def test_a_methods_name_is_no_setting_and_a_folder_no_table(recipe_file, tmp_path, monkeypatch, capsys) -> None:
    command = ["classifier", "--method", "ft", "--set", "name=salun", "--forget-class", "3", "--recipe", str(recipe_file)]
    code, _, err = erase(command, monkeypatch, capsys)
    assert code == 2 and "leave its setting `name` out" in err
    with pytest.raises(ValueError, match="is a folder"):
        bench("digits", forget_class=3, methods=["ft"], seeds=[0], recipe=SMALL, out=tmp_path)


def test_the_printed_table_is_mean_spread_and_distance_to_retrain() -> None:
    """Retrain has UA 100 and 90, ft 60 and 80: mean 70, deviation sqrt(200), distances 40 and 10, mean 25."""
    base = {"ra": 100.0, "ta": 90.0, "mia": 50.0, "mia_balanced": 0.5, "mia_auc": 0.5, "seconds": 2.0, "gap": 0.0}
    seeds = {str(k): {"retrain": base | {"ua": r}, "ft": base | {"ua": f}} for k, (r, f) in enumerate([(100, 60), (90, 80)])}
    table = {"data": "digits", "forget": "class 3", "seeds": seeds}
    figures = summary(table)["ft"]
    assert figures["ua"] == pytest.approx((70, 200**0.5)) and figures["ua_gap"][0] == 25
    lines = table_text(table).splitlines()
    assert lines[0] == "digits, forget class 3, seeds 0, 1"
    assert "70.00±14.14 (25.00)" in lines[3] and lines[2].startswith("Retrain")


def test_every_shipped_recipe_is_sound() -> None:
    assert [name for name in METHODS if name != "retrain"] == ALL_METHODS
    for data, forget_class, share in (("digits", 3, None), ("fashion", None, 0.1), ("fashion", None, 0.5), ("other", 0, None)):
        recipe = recipe_for(data, forget_class, share)
        for method in METHODS:
            config_for(recipe, method)
    pilot = json.loads((Path(__file__).parents[1] / "benchmarks" / "results" / "classifier_pilot.json").read_text())
    for data, forget_class, share in (("digits", 3, None), ("fashion", None, 0.1), ("fashion", None, 0.5)):
        points = pilot[f"{data}/{'class' if share is None else f'random-{share}'}"]["methods"]
        best = {method: min(tried, key=lambda point: point["gap"])["settings"] for method, tried in points.items()}
        assert recipe_for(data, forget_class, share).methods == best, "tuned.yaml has what the pilot found best"
    assert config_for(SMALL, "ft+mask").density == 0.5 and config_for(SMALL, "ft").density is None
    assert config_for(SMALL, "ft+mask").epochs == 1  # the settings without the mask
    with pytest.raises(ValueError, match="takes no mask"):
        config_for(SMALL, "retrain+mask")


def test_one_command_forgets_and_leaves_models_mask_and_figures(recipe_file, tmp_path, monkeypatch, capsys) -> None:
    out = tmp_path / "run"
    options = ["--recipe", str(recipe_file), "--data", "digits", "--forget-class", "3"]
    code, stdout, stderr = erase(
        ["classifier", *options, "--method", "salun", "--density", "0.3", "--compare", "--out", str(out), "--json"],
        monkeypatch,
        capsys,
    )
    assert code == 0, stderr
    result = json.loads(stdout)
    files = {"original.safetensors", "erased.safetensors", "retrained.safetensors", "mask.safetensors", "results.json"}
    assert {path.name for path in out.iterdir()} == files
    assert set(result["models"]) == {"original", "erased", "retrained"} and result["gap"] >= 0
    original, erased = (load_classifier(out / f"{name}.safetensors")[0] for name in ("original", "erased"))
    mask, _ = load_mask(out / "mask.safetensors")
    assert result["density"] == pytest.approx(0.3, abs=1e-3)
    for (name, before), after in zip(original.named_parameters(), erased.parameters(), strict=True):
        assert torch.equal(before[~mask[name]], after[~mask[name]])
    assert load_classifier(out / "erased.safetensors")[1]["forget"] == "class 3"

    again = ["classifier", *options, "--model", str(out / "original.safetensors"), "--mask", str(out / "mask.safetensors")]
    code, stdout, stderr = erase([*again, "--out", str(tmp_path / "two"), "--json"], monkeypatch, capsys)
    assert code == 0, stderr
    second, _ = load_classifier(tmp_path / "two" / "erased.safetensors")
    for (name, before), after in zip(original.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(before[~mask[name]], after[~mask[name]])  # the mask that was given, not one of another density
    copied = load_mask(tmp_path / "two" / "mask.safetensors")[0]
    assert all(torch.equal(mask[name], copied[name]) for name in mask)

    models = [str(out / f"{name}.safetensors") for name in ("original", "erased")]
    reference = ["--reference", str(out / "retrained.safetensors")]
    code, stdout, stderr = erase(["audit", *models, *options, *reference, "--json"], monkeypatch, capsys)
    assert code == 0 and "Both versions together reveal" in stderr
    figures = json.loads(stdout)
    assert figures["average_gap"] == pytest.approx(result["gap"]) and 0 <= figures["consistency_labels"] <= 1
    code, stdout, _ = erase(["audit", *models, *options], monkeypatch, capsys)
    assert code == 0 and "versions_auc" in stdout and "consistency_kl" not in stdout


def test_the_table_of_a_command(recipe_file, tmp_path, monkeypatch, capsys) -> None:
    options = ["--recipe", str(recipe_file), "--data", "digits", "--forget-random", "0.1", "--seeds", "1"]
    code, stdout, stderr = erase(["bench", "classifier", *options, "--methods", "ft,ft+mask"], monkeypatch, capsys)
    assert code == 0, stderr
    assert [line.split()[0] for line in stdout.splitlines()[1:]] == ["method", "Original", "Retrain", "ft", "ft+mask"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "say what to forget with one of"),
        (["--forget-class", "3", "--forget-random", "0.1"], "say what to forget with one of"),
        (["--forget-class", "11"], "class 11 is not in digits"),
        (["--forget-ids", "3,x"], "accepted: numbers and ranges from low to high"),
        (["--forget-ids", "3,3"], "row 3 is named more than once"),
        (["--forget-ids", "5000"], "row 5000 is not in digits"),
        (["--forget-class", "3", "--method", "salvation"], "there is no method 'salvation'"),
        (["--forget-class", "3", "--set", "alpha=-1"], "alpha is -1"),
        (["--forget-class", "3", "--data", "nowhere.npz"], "there is no file nowhere.npz"),
        (["--forget-class", "3", "--model", "nowhere.safetensors"], "is not a classifier of this tool"),
        (["--forget-class", "3", "--mask", "nowhere.safetensors"], "is not a saliency mask"),
        (["--forget-class", "3", "--mask", "any.safetensors", "--density", "0.3"], "leave --density or --mask out"),
        (["--forget-class", "3", "--mask", "any.safetensors", "--set", "density=0.3"], "leave --density or --mask out"),
        (["--forget-class", "3", "--method", "retrain", "--set", "epochs=7"], "its epochs included"),
        (["--forget-class", "3", "--epochs", "0"], "Invalid value for '--epochs'"),
        (["--forget-class", "3", "--device", "abacus"], "there is no device 'abacus' here"),
        (["--forget-class", "3", "--seed", "-1"], "Invalid value for '--seed'"),
    ],
)
def test_a_mistake_is_one_sentence_and_writes_nothing(recipe_file, tmp_path, monkeypatch, capsys, options, sentence) -> None:
    out = tmp_path / "out"
    code, stdout, stderr = erase(["classifier", "--recipe", str(recipe_file), *options, "--out", str(out)], monkeypatch, capsys)
    assert code == 2 and sentence in stderr and not stdout and not out.exists()


def test_a_model_of_changed_data_is_refused_and_left_as_it_is(recipe_file, tmp_path, monkeypatch, capsys) -> None:
    import numpy as np

    path, out = tmp_path / "mine.npz", tmp_path / "run"
    rng = np.random.default_rng(0)
    rows, labels = rng.random((60, 5), dtype=np.float32), np.arange(60) % 3
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("default: {original: {epochs: 1}}")
    options = ["classifier", "--recipe", str(recipe), "--data", str(path), "--forget-class", "1", "--method", "ft"]
    np.savez(path, x_train=rows, y_train=labels, x_test=rows[:20], y_test=labels[:20])
    assert erase([*options, "--out", str(out)], monkeypatch, capsys)[0] == 0
    before = (out / "original.safetensors").read_bytes()
    code, _, stderr = erase([*options, "--out", str(out)], monkeypatch, capsys)
    assert code == 2 and "already holds a result" in stderr
    rows[0, 0] += 0.1
    np.savez(path, x_train=rows, y_train=labels, x_test=rows[:20], y_test=labels[:20])
    model = ["--model", str(out / "original.safetensors"), "--out", str(tmp_path / "two")]
    code, _, stderr = erase([*options, *model], monkeypatch, capsys)
    assert code == 2 and "the data file or the choice of rows has changed" in stderr
    assert (out / "original.safetensors").read_bytes() == before and not (tmp_path / "two").exists()


def test_a_model_given_is_held_against_a_retrain_of_its_own_settings(recipe_file, tmp_path, monkeypatch, capsys) -> None:
    options = ["classifier", "--recipe", str(recipe_file), "--forget-class", "3", "--method", "ft"]
    first = [*options, "--architecture", "cnn", "--epochs", "2", "--out", str(tmp_path / "one")]
    assert erase(first, monkeypatch, capsys)[0] == 0
    model = ["--model", str(tmp_path / "one" / "original.safetensors")]
    code, _, stderr = erase([*options, *model, "--compare", "--out", str(tmp_path / "two")], monkeypatch, capsys)
    assert code == 0, stderr
    headers = {path.stem: load_classifier(path)[1] for path in (tmp_path / "two").glob("*.safetensors")}
    for header in headers.values():
        assert header["architecture"] == "cnn" and json.loads(header["original"])["epochs"] == 2
    retrain = config_for(SMALL.model_copy(update={"original": SMALL.original.model_copy(update={"epochs": 2})}), "retrain")
    assert headers["retrained"]["config"] == hash_of(retrain.model_dump()) != headers["erased"]["config"]
    for option, value, sentence in (("--epochs", "5", "trained with 2"), ("--architecture", "mlp", "trained with cnn")):
        code, _, stderr = erase([*options, *model, option, value, "--out", str(tmp_path / "three")], monkeypatch, capsys)
        assert code == 2 and f"{option} is {value}" in stderr and sentence in stderr


def test_a_model_of_an_older_version_says_its_architecture_alone(tmp_path, caplog) -> None:
    header = {"architecture": "cnn", "shape": "[1, 8, 8]", "num_classes": "10"}
    save_classifier(build("cnn", (1, 8, 8), 10, 0), tmp_path / "old.safetensors", header)
    assert trained_as(tmp_path / "old.safetensors", SMALL, {"epochs": 3}).original.model_dump() == {
        **SMALL.original.model_dump(),
        "architecture": "cnn",
    }
    assert "does not say how it was trained" in caplog.text


@pytest.mark.parametrize(("ids", "num"), [("17", 1), ("17,30-32", 4)])
def test_rows_by_number_and_one_alone(ids, num, recipe_file, tmp_path, monkeypatch, capsys) -> None:
    options = [
        "classifier",
        "--recipe",
        str(recipe_file),
        "--forget-ids",
        ids,
        "--method",
        "ft",
        "--out",
        str(tmp_path / "run"),
    ]
    code, stdout, stderr = erase(options, monkeypatch, capsys)
    assert code == 0, stderr
    result = json.loads((tmp_path / "run" / "results.json").read_text())
    assert result["forget"] == ("1 row by number" if num == 1 else "4 rows by number") and result["num_forget"] == num
    assert (result["models"]["erased"]["mia"] is None) == (num == 1)
    assert ("needs two or more forgotten rows" in stdout) == (num == 1) and "unseen  " not in stdout


def test_a_mask_keeps_where_it_comes_from(recipe_file, tmp_path, monkeypatch, capsys, caplog) -> None:
    options = ["classifier", "--recipe", str(recipe_file), "--method", "salun"]
    assert erase([*options, "--forget-class", "3", "--out", str(tmp_path / "3")], monkeypatch, capsys)[0] == 0
    mask = ["--mask", str(tmp_path / "3" / "mask.safetensors")]
    code, stdout, _ = erase(
        [*options, *mask, "--forget-class", "5", "--out", str(tmp_path / "5"), "--json"], monkeypatch, capsys
    )
    assert code == 0 and "was made to forget class 3; now it serves to forget class 5" in caplog.text
    assert json.loads(stdout)["mask_made_to_forget"] == "class 3"
    assert load_mask(tmp_path / "5" / "mask.safetensors")[1] == load_mask(tmp_path / "3" / "mask.safetensors")[1]
    other = tmp_path / "other.yaml"
    other.write_text(json.dumps({"default": SMALL.model_dump() | {"rows": {"num_train": 150, "num_test": 100}}}))
    options = ["classifier", "--recipe", str(other), "--forget-class", "3", *mask, "--out", str(tmp_path / "6")]
    code, _, stderr = erase(options, monkeypatch, capsys)
    assert code == 2 and "was made on other rows" in stderr


def test_what_is_forgotten_stands_in_the_folders_name_and_one_process_works_in_it(
    recipe_file, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    for target in (["--forget-class", "3"], ["--forget-class", "5"], ["--forget-random", "0.1"], ["--forget-ids", "3,4"]):
        options = ["classifier", "--recipe", str(recipe_file), "--method", "ft", *target]
        assert erase(options, monkeypatch, capsys)[0] == 0
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert names[:3] == [f"classifier-digits-ft-{target}" for target in ("class-3", "class-5", "random-0.1-seed-0")]
    assert len(names) == 4 and names[3].startswith("classifier-digits-ft-rows-")
    with locked(tmp_path / "held"):
        code, _, stderr = erase([*options, "--out", "held"], monkeypatch, capsys)
    assert code == 2 and "held is in use by process" in stderr and not (tmp_path / "held").exists()


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        ({"original": {"epochs": 1}}, "'original' is no section"),
        ({"digit/class": {"original": {"epochs": 1}}}, "neither a section digits/class nor a default; it has digit/class"),
        ({"digits/clas": {}}, "'digits/clas' is no section"),
        ({"default": {"methods": {"salan": {"epochs": 1}}}}, "default: there is no method 'salan'"),
        ({"default": {"methods": {"retrain": {"epochs": 1}}}}, "its epochs included"),
        ({"default": {"original": {"epoch": 1}}}, "default.original.epoch: Extra inputs"),
    ],
)
def test_a_recipe_that_would_be_ignored_is_refused(recipe, sentence, tmp_path, monkeypatch, capsys) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    options = ["classifier", "--recipe", str(path), "--forget-class", "3", "--out", str(tmp_path / "out")]
    code, _, stderr = erase(options, monkeypatch, capsys)
    assert code == 2 and sentence in stderr


@pytest.mark.parametrize("content", ["[]", "no json"])
def test_another_file_is_no_table(content, recipe_file, tmp_path, monkeypatch, capsys) -> None:
    out = tmp_path / "table.json"
    out.write_text(content)
    options = ["--recipe", str(recipe_file), "--forget-class", "3", "--methods", "ft", "--seeds", "1", "--out", str(out)]
    code, _, stderr = erase(["bench", "classifier", *options], monkeypatch, capsys)
    assert code == 2 and str(out) in stderr and stderr.count("\n") == 1 and out.read_text() == content


def test_an_audit_draws_its_attack_from_the_runs_seed(recipe_file, tmp_path, monkeypatch, capsys) -> None:
    """Its figures of the erased model are those of the run, for a seed that is not the default."""
    options = ["--recipe", str(recipe_file), "--forget-random", "0.2", "--seed", "5", "--json"]
    device = ["--device", "cpu"]
    out = tmp_path / "run"
    run = json.loads(erase(["classifier", *options, *device, "--method", "ft", "--out", str(out)], monkeypatch, capsys)[1])
    models = [str(out / f"{name}.safetensors") for name in ("original", "erased")]
    found = json.loads(erase(["audit", *models, *options], monkeypatch, capsys)[1])
    assert found["models"] == {"before": run["models"]["original"], "after": run["models"]["erased"]}


def test_figures_that_are_missing_are_left_out_of_the_means() -> None:
    base = {"ua": 100.0, "ra": 100.0, "ta": 90.0, "mia": None, "mia_balanced": None, "seconds": 2.0, "gap": 0.0}
    seeds = {str(k): {"retrain": base | {"mia_auc": auc}} for k, auc in enumerate((None, 0.5))}
    lines = table_text({"data": "digits", "forget": "class 3", "seeds": seeds}).splitlines()
    assert "bal. acc." not in lines[1] and lines[2].split()[7:] == ["-", "0.00±0.00", "0.500", "2.00"]


def test_the_documents_tables_are_those_of_the_records() -> None:
    from benchmarks.classifier_tables import RESULTS, markdown

    docs = (Path(__file__).parents[1] / "docs" / "classifiers.md").read_text(encoding="utf-8")
    for name in ("digits_class", "fashion_random-0.1", "fashion_random-0.5"):
        table = markdown(json.loads((RESULTS / f"classifier_{name}.json").read_text(encoding="utf-8")))
        assert table in docs, f"docs/classifiers.md does not hold the table of {name}: {table}"
