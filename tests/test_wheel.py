"""The wheel carries everything: weights, recipes and templates, and works outside the checkout."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_two_builds_give_the_same_bytes(tmp_path: Path) -> None:
    """From two copies of the sources with other times and another umask, under one SOURCE_DATE_EPOCH."""
    hashes = []
    names = ["erase", "pipelines", "eval", "configs", "licenses", "pyproject.toml", "README.md", "LICENSE", "NOTICE"]
    for number in (1, 2):
        source, out = tmp_path / f"source{number}", tmp_path / f"out{number}"
        for name in names:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
            copy(ROOT / name, (source / name).parent.mkdir(parents=True, exist_ok=True) or source / name)
        for path in source.rglob("*"):
            os.utime(path, (1_600_000_000 + number, 1_600_000_000 * number))
        command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
        environment = os.environ | {"SOURCE_DATE_EPOCH": "1700000000"}
        subprocess.run(command, env=environment, umask=(0o022, 0o077)[number - 1], capture_output=True, timeout=900, check=True)
        hashes.append(hashlib.sha256(next(out.glob("*.whl")).read_bytes()).hexdigest())
    assert hashes[0] == hashes[1]


def test_the_wheel_holds_the_packages_the_weights_and_the_recipes_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"erase", "pipelines", "eval"}
    for name in (
        "erase/configs/recipe-object.yaml",
        "pipelines/emoji/weights/unet/diffusion_pytorch_model.safetensors",
        "pipelines/emoji/weights/judge/model.safetensors",
        "eval/report.html.j2",
        "erase/app/page.css",
    ):
        assert name in names
    assert not [name for name in names if "/data/" in name or "/training/" in name]


def test_the_installed_wheel_erases_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "PYTHONSAFEPATH": "1"}
    settings = ["data.num_forget=4", "data.num_retain=4", "data.num_anchor=2", "data.num_inference_steps=1", "train.steps=1"]
    settings += ["evaluation.num_forget=2", "evaluation.num_inference_steps=1", "saliency.rounds=1"]
    command = [sys.executable, "-m", "erase.cli", "--concept", "neon", "--out", "run", "--json"]
    command += [part for setting in settings for part in ("--set", setting)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["audit"]["changed_outside_mask"] == 0
    where = [sys.executable, "-c", "import erase, eval.report, pipelines.load as p; print(erase.__file__, p.EMOJI_WEIGHTS)"]
    found = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout.split()
    assert all(path.startswith(str(tmp_path)) for path in found)


def test_the_installed_wheel_opens_its_page_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "erase.cli", "app", "--runs", "runs"]
    page = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert page.stdout is not None
        address = page.stdout.readline().split()[0]
        with urllib.request.urlopen(address, timeout=60) as answer:
            assert b"erase" in answer.read()
    finally:
        page.terminate()
        assert page.wait(60) is not None
        page.stdout.close()
