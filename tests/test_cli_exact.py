"""`erase linear`, `erase sisa` and `erase forest`, from fit over removal to status, and their mistakes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from erase.cli import app
from erase.files import sha256


def run(*arguments: str) -> dict[str, object]:
    """A command's JSON; raises what the command raises."""
    result = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def data(tmp_path: Path) -> str:
    """90 rows of two classes, far apart, with ids of their own and norms above 1."""
    generator = np.random.default_rng(0)
    labels = np.arange(90) % 2
    features = generator.normal(size=(90, 4)) + 3 * labels[:, None] - 1.5
    path = tmp_path / "data.npz"
    np.savez(path, features=features, labels=labels, ids=np.arange(500, 590))
    return str(path)


def forget(path: str, gone: range) -> None:
    """Take rows out of the data file as well."""
    with np.load(path) as file:
        keep = ~np.isin(file["ids"], gone)
        arrays = {name: file[name][keep] for name in file.files}
    np.savez(path, **arrays)


def test_linear_from_fit_to_status(data: str, tmp_path: Path) -> None:
    out = str(tmp_path / "linear.safetensors")
    fitted = run("linear", "fit", "--data", data, "--out", out, "--scale", "10")
    assert fitted["rows"] == 90 and fitted["accuracy_on_its_rows"] > 0.9
    assert fitted["budget"] == pytest.approx(0.22803, abs=1e-5)
    first = run("linear", "remove", out, "--ids", "500-504")
    assert first["rows"] == 85 and first["removed"] == 5 and fitted["spent"] < first["spent"] < first["budget"]
    forget(data, range(500, 505))
    second = run("linear", "remove", out, "--ids", "510,512", "--batch", "2")
    assert second["rows"] == 83 and second["spent"] > first["spent"]
    status = run("linear", "status", out)
    assert (status["rows"], status["spent"], status["bound"]) == (83, second["spent"], "elementwise")


def test_two_versions_of_a_linear_model_name_the_removed_row(data: str, tmp_path: Path) -> None:
    """`erase audit` finds it among all ninety; of two files that are no before and after it says so."""
    before, after = str(tmp_path / "linear.safetensors"), str(tmp_path / "after.safetensors")
    run("linear", "fit", "--data", data, "--out", before, "--scale", "10", "--sigma", "10")
    Path(after).write_bytes(Path(before).read_bytes())
    run("linear", "remove", after, "--ids", "537")
    found = run("audit", before, after)
    assert found["removed"] == [537] and found["rank_of_removed"] == 1
    assert found["suspects"][0] == [537, pytest.approx(1, abs=1e-9)] and found["suspects"][1][1] < 1 - 1e-6
    shown = CliRunner().invoke(app, ["audit", before, after])
    assert "row 537" in shown.stdout and "removed" in shown.stdout and "Keep the model from before" in shown.stderr
    with pytest.raises(ValueError, match="does not have fewer rows than the first"):
        run("audit", after, before)
    run("linear", "fit", "--data", data, "--out", str(tmp_path / "other.safetensors"), "--scale", "10", "--lam", "0.5")
    with pytest.raises(ValueError, match="not versions of one model"):
        run("audit", before, str(tmp_path / "other.safetensors"))
    moved = str(tmp_path / "moved.npz")
    Path(data).rename(moved)
    assert run("audit", before, after, "--data", moved)["rank_of_removed"] == 1
    assert "AUC" not in shown.stderr and "|cosine| below" in shown.stderr
    with pytest.raises(ValueError, match="--reference, --forget-class would have no effect"):
        run("audit", before, after, "--data", moved, "--reference", before, "--forget-class", "3")


def test_a_linear_model_is_exported_and_scored(data: str, tmp_path: Path) -> None:
    out, public = str(tmp_path / "linear.safetensors"), str(tmp_path / "public.safetensors")
    run("linear", "fit", "--data", data, "--out", out, "--scale", "10")
    removed = run("linear", "remove", out, "--ids", "500")
    assert run("linear", "export", out, "--out", public) == {"out": public}
    score = run("linear", "score", public, "--data", data)
    assert score == run("linear", "score", out, "--data", data) and score["rows"] == 90
    forget(data, range(500, 501))
    assert run("linear", "score", public, "--data", data) == {"rows": 89, "accuracy": removed["accuracy_on_its_rows"]}
    with pytest.raises(ValueError, match="an export, which has weights alone"):
        run("linear", "remove", public, "--ids", "501")
    with pytest.raises(ValueError, match="have 64 features, the model 4"):
        run("linear", "score", public, "--data", "digits:3,8")


@pytest.mark.parametrize("system", ["sisa", "forest"])
def test_sisa_and_forests_are_scored(system: str, data: str, tmp_path: Path) -> None:
    """On its own rows what `fit` says, on flipped labels the rest; the training data may have moved."""
    out, moved, flipped = str(tmp_path / "model"), str(tmp_path / "moved.npz"), str(tmp_path / "flipped.npz")
    fitted = run(system, "fit", "--data", data, "--out", out)["accuracy_on_its_rows"]
    with np.load(data) as file:
        np.savez(flipped, features=file["features"], labels=1 - file["labels"])
    Path(data).rename(moved)
    assert run(system, "score", out, "--data", moved, "--trained-on", moved) == {"rows": 90, "accuracy": fitted}
    assert run(system, "score", out, "--data", flipped, "--trained-on", moved)["accuracy"] == pytest.approx(1 - fitted)
    with pytest.raises(ValueError, match="64 features"):
        run(system, "score", out, "--data", "digits", "--trained-on", moved)


def test_real_targets_are_scored_by_r2_and_error(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    features, path = generator.normal(size=(80, 3)), tmp_path / "real.npz"
    np.savez(path, features=features, labels=features @ [1.0, -2.0, 3.0])
    options = ["--loss", "squared", "--lam", "1e-6", "--sigma", "1e-3", "--scale", "10"]
    fitted = run("linear", "fit", "--data", str(path), "--out", str(tmp_path / "model"), *options)
    assert fitted["r2_on_its_rows"] > 0.99 and 0 < fitted["rmse_on_its_rows"] < 0.1 and "accuracy_on_its_rows" not in fitted


@pytest.mark.parametrize("system", ["linear", "forest"])
def test_a_second_removal_waits_for_the_first(system: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A removal begun while another is between load and save is refused: it would undo that one."""
    from erase.classification import rows

    out, load, refused = str(tmp_path / "model"), rows.load_rows, []
    run(system, "fit", "--data", data, "--out", out)

    def beside(spec: str) -> rows.Rows:
        monkeypatch.setattr(rows, "load_rows", load)
        with pytest.raises(ValueError, match="is in use by process") as error:
            run(system, "remove", out, "--ids", "501")
        refused.append(error)
        return load(spec)

    monkeypatch.setattr(rows, "load_rows", beside)
    assert run(system, "remove", out, "--ids", "500")["rows"] == 89 and refused
    assert run(system, "remove", out, "--ids", "501")["rows"] == 88
    assert {path.name for path in tmp_path.iterdir()} == {"model", "data.npz"}


def test_a_removal_keeps_where_the_data_went(data: str, tmp_path: Path) -> None:
    out, moved = str(tmp_path / "sisa"), str(tmp_path / "moved.npz")
    run("sisa", "fit", "--data", data, "--out", out, "--shards", "2", "--epochs", "1")
    Path(data).rename(moved)
    run("sisa", "remove", out, "--ids", "500", "--data", moved)
    assert run("sisa", "status", out)["data"] == moved and run("sisa", "remove", out, "--ids", "501")["rows"] == 88


def test_linear_trains_anew_where_the_budget_is_spent(data: str, tmp_path: Path) -> None:
    out = str(tmp_path / "linear.safetensors")
    run("linear", "fit", "--data", data, "--out", out, "--bound", "worst")
    removed = run("linear", "remove", out, "--ids", "500-501")
    assert removed["trained_anew"] == 2 and removed["spent"] < 1e-6


def test_sisa_from_fit_to_status(data: str, tmp_path: Path) -> None:
    out = str(tmp_path / "sisa")
    fitted = run("sisa", "fit", "--data", data, "--out", out, "--shards", "3", "--slices", "2", "--epochs", "6")
    assert fitted["sample_steps"] == 4 * 3 * (15 + 30) and fitted["accuracy_on_its_rows"] > 0.9
    removed = run("sisa", "remove", out, "--ids", "533")
    assert removed["shards_trained"] == 1 and removed["rows"] == 89
    assert removed["of_full"] < 0.34 and 0 < removed["expected_of_full_at_most"] < 0.34
    status = run("sisa", "status", out)
    assert status["rows"] == 89 and sorted(status["rows_by_shard"]) == [29, 30, 30] and status["checkpoints"] == 6
    assert status["model"] == "mlp" and status["shards"] == 3


def test_sisa_of_trees(data: str, tmp_path: Path) -> None:
    out = str(tmp_path / "sisa")
    run("sisa", "fit", "--data", data, "--out", out, "--model", "tree", "--shards", "3")
    assert run("sisa", "remove", out, "--ids", "500-509")["rows"] == 80


def test_forest_from_fit_to_status(data: str, tmp_path: Path) -> None:
    out, again = tmp_path / "forest.safetensors", tmp_path / "again.safetensors"
    fitted = run("forest", "fit", "--data", data, "--out", str(out), "--trees", "4")
    assert fitted["accuracy_on_its_rows"] == 1 and fitted["rows"] == 90
    removed = run("forest", "remove", str(out), "--ids", "500-509")
    assert removed["rows"] == 80 and 0 <= removed["regrown_share_of_a_fit"] <= 1
    forget(data, range(500, 510))
    run("forest", "fit", "--data", data, "--out", str(again), "--trees", "4")
    assert sha256(out) == sha256(again), "a removal and a fit on the rest write the same file"
    assert run("forest", "status", str(out)) == {**run("forest", "status", str(again)), "rows": 80}


@pytest.mark.parametrize("system", ["linear", "sisa", "forest"])
def test_mistakes_leave_what_is_on_disk(system: str, data: str, tmp_path: Path) -> None:
    out = tmp_path / "model"
    run(system, "fit", "--data", data, "--out", str(out))
    before = sha256(out)
    for ids, message in (
        ("1", "no row with the id 1"),
        ("500,500", "more than once"),
        ("500-589", "all 90 rows"),
        ("x", "ids are"),
    ):
        with pytest.raises(ValueError, match=message):
            run(system, "remove", str(out), "--ids", ids)
    with pytest.raises(ValueError, match=r"already exists|already holds a model"):
        run(system, "fit", "--data", data, "--out", str(out))
    with np.load(data) as file:
        arrays = dict(file)
    arrays["features"][7, 1] += 1e-9
    np.savez(data, **arrays)
    with pytest.raises(ValueError, match="changed since"):
        run(system, "remove", str(out), "--ids", "500")
    assert sha256(out) == before
    with pytest.raises(ValueError, match="is not a"):
        run(system, "status", data)


def test_long_rows_are_cut_with_a_notice(data: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["linear", "fit", "--data", data, "--out", str(tmp_path / "model"), "--bound", "paper"])
    assert result.exit_code == 0 and "rows have a norm above 1" in result.stderr
    assert "budget" in result.stdout and "norm" not in result.stdout


def test_a_mistake_is_one_sentence_and_exit_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "erase.cli", "linear", "fit", "--data", "nothing", "--out", str(tmp_path / "model")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("erase: no data set nothing; accepted: digits") and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["linear", "fit", "--lam", "-1"], r"--lam is -1\.0: Input should be greater than 0\."),
        (["linear", "fit", "--sigma", "0"], r"--sigma is 0\.0: Input should be greater than 0\."),
        (["linear", "fit", "--epsilon", "50"], "lower epsilon"),
        (["linear", "fit", "--sigma", "1e-20"], "raise sigma"),
        (["sisa", "fit", "--shards", "0"], "--shards is 0"),
        (["sisa", "fit", "--model", "tree", "--slices", "2"], "use slices=1"),
        (["forest", "fit", "--trees", "0"], "n_estimators is 0"),
        (["linear", "fit", "--scale", "-2"], r"--scale is -2\.0"),
    ],
)
def test_settings_that_are_refused(arguments: list[str], message: str, data: str, tmp_path: Path) -> None:
    out = tmp_path / "model"
    with pytest.raises(ValueError, match=message):
        run(*arguments, "--data", data, "--out", str(out))
    assert not out.exists()
