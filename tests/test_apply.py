"""`erase apply` and `erase export` on files: stacks, undo, other bases, single files; a mistake leaves nothing behind."""

import json
import re
import shutil
import subprocess
import sys
import threading
from collections import namedtuple
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from erase.applied_patch import AppliedPatch
from erase.apply import undo_file
from erase.export import pipeline_hash, save_model
from erase.files import sha256
from erase.patch import Patch, load_patch, save_patch
from pipelines.load import model_hash
from pipelines.single_file import unpack_configs
from pipelines.stable_diffusion import StableDiffusion

UNET = Path("unet") / "diffusion_pytorch_model.safetensors"
Erase = Callable[..., Any]


@pytest.fixture
def erase(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Erase:
    """The command line in this process, in a folder of its own: (exit code, stdout, stderr)."""
    from erase.cli import main

    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["erase", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, stop.value.code or 0, out, err)

    return call


def done(result: Any) -> dict[str, Any]:
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def refused(result: Any, *words: str) -> None:
    assert result.returncode == 2, result.stdout + result.stderr
    assert result.stdout == "" and len(result.stderr.strip().splitlines()) == 1, result.stderr
    for word in words:
        assert word in result.stderr, result.stderr


def new_values(family: StableDiffusion, seed: int, provenance: dict[str, str]) -> Patch:
    """A patch of a tenth of the weights, each moved a little."""
    generator = torch.Generator().manual_seed(seed)
    positions, values, shapes = {}, {}, {}
    for name, p in family.denoiser.named_parameters():
        chosen = (torch.rand(p.numel(), generator=generator) < 0.1).nonzero()[:, 0]
        if len(chosen):
            positions[name], shapes[name] = chosen, tuple(p.shape)
            values[name] = p.detach().reshape(-1)[chosen] + 0.05 * torch.randn(len(chosen), generator=generator)
    return Patch(values, positions, shapes, provenance)


@pytest.fixture(scope="module")
def files(tiny_pipeline: StableDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, another fine-tune of it, and two runs on the base (patch, erased model, card), all tiny."""
    folder = tmp_path_factory.mktemp("files")
    tiny_pipeline.save_pretrained(folder / "base")
    base = model_hash(str(folder / "base"))
    other = StableDiffusionPipeline.from_pretrained(folder / "base", safety_checker=None)
    with torch.no_grad():
        other.unet.conv_in.weight.add_(0.01)
    other.save_pretrained(folder / "other")
    for k, concept in enumerate(("dog", "neon")):
        family = StableDiffusion(StableDiffusionPipeline.from_pretrained(folder / "base", safety_checker=None))
        run = folder / concept
        run.mkdir()
        weights = pipeline_hash(family.pipeline)
        origin = {
            "base": base,
            "weights": weights,
            "concept": concept,
            "density": "0.1",
            "model": "base",
            "config": "c" * 64,
            "erase": "0",
        }
        patch = new_values(family, k, origin)
        save_patch(patch, run / "patch.safetensors")
        AppliedPatch(family.denoiser, patch)
        save_model(family, run / "model")
        record(run)
        (run / "config.yaml").write_text(yaml.safe_dump({"concept": concept, "model": str(folder / "base")}))
        (run / "README.md").write_text('---\nlibrary_name: diffusers\n---\n- `model/`: `X.from_pretrained("model")`.\n')
        (run / "report.html").write_text("pictures")
    return folder


def record(run: Path) -> None:
    """Write what a run that made these files would have noted of them."""
    made = {name: sha256(run / name) for name in ("model", "patch.safetensors")}
    (run / "run.json").write_text(json.dumps({"stages": {"train": {"inputs": "", "files": made}}}))


def unet(model: Path) -> dict[str, Tensor]:
    return load_file(model / UNET)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """The same names, dtypes and bits."""
    return one.keys() == other.keys() and all(
        values.dtype == other[name].dtype and torch.equal(values.view(torch.uint8), other[name].view(torch.uint8))
        for name, values in one.items()
    )


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_one_patch_is_the_erased_model_and_undo_is_the_base_bit_for_bit(files: Path, erase: Erase, tmp_path: Path) -> None:
    result = done(erase("apply", files / "dog/patch.safetensors", "--to", files / "base", "--json"))
    assert result["out"] == "patched" and result["undo"] == "patched/undo.safetensors"
    assert equal(unet(tmp_path / "patched"), unet(files / "dog/model"))
    assert not equal(unet(tmp_path / "patched"), unet(files / "base"))
    before = tree(tmp_path / "patched")
    result = done(erase("apply", "--undo", "patched", "--json"))
    assert result["out"] == "patched-undone"
    assert equal(unet(tmp_path / "patched-undone"), unet(files / "base"))
    assert tree(tmp_path / "patched") == before and not (tmp_path / "patched-undone/undo.safetensors").exists()


def test_no_written_config_tells_where_the_base_lies(files: Path, erase: Erase, tmp_path: Path) -> None:
    """Neither libraries' notes in a folder's configs nor those in a single file's header."""
    done(erase("apply", files / "dog/patch.safetensors", "--to", files / "base", "--out", "model", "--json"))
    done(erase("export", files / "base", "--to", "single-file", "--out", "model.safetensors", "--json"))
    unpack_configs(tmp_path / "model.safetensors", tmp_path / "configs")
    texts = {path: path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.json")}
    assert {path.parent.name for path in texts} >= {"model", "unet", "vae", "text_encoder", "scheduler", "tokenizer"}
    assert str(files) in (files / "other/unet/config.json").read_text(encoding="utf-8"), "diffusers alone tells it"
    assert not [path for path, text in texts.items() if str(files) in text or "name_or_path" in text]


def test_a_runs_folder_stands_for_its_patch(files: Path, erase: Erase, tmp_path: Path) -> None:
    done(erase("apply", files / "dog", files / "neon/patch.safetensors", "--to", files / "base", "--out", "one", "--json"))
    patches = [files / name / "patch.safetensors" for name in ("dog", "neon")]
    done(erase("apply", *patches, "--to", files / "base", "--out", "other", "--json"))
    assert tree(tmp_path / "one") == tree(tmp_path / "other")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_stack_in_16_bits_is_undone_to_the_base_in_16_bits(dtype: str, files: Path, erase: Erase, tmp_path: Path) -> None:
    patches = [files / name / "patch.safetensors" for name in ("dog", "neon")]
    strengths = ["--strength", 0.7, "--strength", 1.5]
    result = done(erase("apply", *patches, "--to", files / "base", *strengths, "--dtype", dtype, "--json"))
    assert [entry["strength"] for entry in result["patches"]] == [0.7, 1.5]
    base = {name: values.to(getattr(torch, dtype)) for name, values in unet(files / "base").items()}
    patched = unet(tmp_path / "patched")
    assert not equal(patched, base)
    loaded = [load_patch(path) for path in patches]
    name = "conv_in.weight"
    expected = base[name].double().reshape(-1).clone()
    for patch, strength in zip(loaded, (0.7, 1.5), strict=True):
        positions = patch.positions[name]
        expected[positions] += strength * (patch.values[name].double() - base[name].double().reshape(-1)[positions])
    assert torch.equal(patched[name].reshape(-1), expected.float().to(base[name].dtype))
    done(erase("apply", "--undo", "patched", "--out", "restored", "--json"))
    assert equal(unet(tmp_path / "restored"), base)


def test_strength_0_is_the_base(files: Path, erase: Erase, tmp_path: Path) -> None:
    patches = [files / name / "patch.safetensors" for name in ("dog", "neon")]
    done(erase("apply", *patches, "--to", files / "base", "--strength", 0, "--json"))
    assert equal(unet(tmp_path / "patched"), unet(files / "base"))


def test_a_single_file_without_its_tokenizer_is_undone_with_another_models(
    files: Path, erase: Erase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As every file of a full-size model is: CLIP's tokenizer is too large for a header."""
    monkeypatch.setattr("pipelines.single_file.TOKENIZER_LIMIT", 0)
    done(erase("apply", files / "dog", "--to", files / "base", "--single-file", "--out", "patched.safetensors", "--json"))
    refused(erase("apply", "--undo", "patched.safetensors"), "needs the tokenizer of", "--model-config")
    result = done(erase("apply", "--undo", "patched.safetensors", "--model-config", files / "base", "--json"))
    done(erase("export", result["out"], "--to", "diffusers", "--out", "back", "--model-config", files / "base", "--json"))
    assert equal(unet(tmp_path / "back"), unet(files / "base"))


def test_a_patched_model_that_was_changed_is_not_undone(files: Path, erase: Erase, tmp_path: Path) -> None:
    done(erase("apply", files / "dog/patch.safetensors", "--to", files / "base", "--json"))
    weights = unet(tmp_path / "patched")
    weights["conv_out.bias"] += 1
    save_file(weights, tmp_path / "patched" / UNET, metadata={"format": "pt"})
    refused(erase("apply", "--undo", "patched"), "was changed after")
    refused(erase("apply", "--undo", files / "dog/model"), "has no undo.safetensors")
    (tmp_path / "patched/undo.safetensors").write_bytes((files / "dog/patch.safetensors").read_bytes())
    refused(erase("apply", "--undo", "patched"), "undoes nothing")
    assert [path.name for path in tmp_path.iterdir()] == ["patched"]


def test_a_patch_goes_onto_another_base_only_when_asked_and_says_what_that_means(
    files: Path, erase: Erase, tmp_path: Path
) -> None:
    patch = files / "dog/patch.safetensors"
    onto = ["--to", files / "other", "--onto-other-base"]
    refused(erase("apply", patch, "--to", files / "other"), "made on another base (it names base, ", "--onto-other-base")
    refused(erase("apply", patch, *onto), "does not contain the values of its own base", "--patch-base", "--with-originals")
    refused(erase("apply", patch, *onto, "--patch-base", files / "neon/model"), "is not the base that the patch names")
    assert list(tmp_path.iterdir()) == []
    said = erase("apply", patch, *onto, "--patch-base", files / "base", "--out", "one")
    assert said.returncode == 0, said.stderr
    assert "not the base that patch.safetensors was made on: the two differ in" in said.stdout
    assert "Untested on this base: run `erase eval`" in said.stdout
    done(erase("export", files / "dog", "--to", "patch", "--with-originals", "--out", "full.safetensors", "--json"))
    result = done(erase("apply", "full.safetensors", *onto, "--out", "two", "--json"))
    assert equal(unet(tmp_path / "one"), unet(tmp_path / "two"))
    base, other, moved = unet(files / "base"), unet(files / "other"), unet(tmp_path / "two")
    loaded = load_patch(patch)
    share = len(loaded.positions["conv_in.weight"]) / sum(len(values) for values in loaded.values.values())
    assert result["other_base"][0]["different"] == pytest.approx(share)
    for name in base:
        change = moved[name].double() - other[name].double()
        expected = unet(files / "dog/model")[name].double() - base[name].double()
        torch.testing.assert_close(change, expected, rtol=0, atol=1e-6)
    done(erase("apply", "--undo", "two", "--json"))
    assert equal(unet(tmp_path / "two-undone"), other)


def test_a_patch_knows_its_base_in_another_form_by_the_weights_of_all_that_makes_pictures(
    files: Path, erase: Erase, tmp_path: Path
) -> None:
    patch = files / "dog/patch.safetensors"
    done(erase("apply", patch, "--to", files / "base", "--json"))
    done(erase("apply", "--undo", "patched", "--json"))
    done(erase("export", files / "base", "--to", "single-file", "--out", "base.safetensors", "--json"))
    for form in ("patched-undone", "base.safetensors"):
        assert model_hash(str(tmp_path / form)) != model_hash(str(files / "base"))
        result = done(erase("apply", patch, "--to", form, "--out", f"again-{form[:7]}", "--json"))
        assert result["other_base"] == []
        assert equal(unet(tmp_path / f"again-{form[:7]}"), unet(files / "dog/model"))
    other = StableDiffusionPipeline.from_pretrained(files / "base", safety_checker=None)
    with torch.no_grad():  # the same denoiser, which would be told other things
        next(other.text_encoder.parameters()).add_(0.01)
    other.save_pretrained(tmp_path / "texts")
    refused(erase("apply", patch, "--to", "texts", "--out", "two"), "made on another base")


def test_a_single_file_is_the_same_model_and_carries_its_origin(files: Path, erase: Erase, tmp_path: Path) -> None:
    patch = files / "dog/patch.safetensors"
    done(erase("apply", patch, "--to", files / "base", "--single-file", "--json"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["patched.safetensors", "patched.undo.safetensors"]
    done(erase("export", files / "dog", "--to", "single-file", "--out", "erased.safetensors", "--json"))
    patched, erased = (load_file(tmp_path / f"{name}.safetensors") for name in ("patched", "erased"))
    assert equal(patched, erased)
    unpack_configs(tmp_path / "erased.safetensors", tmp_path / "configs")
    loaded = StableDiffusionPipeline.from_single_file(
        str(tmp_path / "erased.safetensors"), config=str(tmp_path / "configs"), local_files_only=True
    )
    assert equal(dict(loaded.unet.state_dict()), unet(files / "dog/model"))
    with safe_open(tmp_path / "erased.safetensors", "pt") as file:
        origin = json.loads(file.metadata()["erase"])
    assert origin["base"] == model_hash(str(files / "base")) and origin["concept"] == "dog"
    assert origin.keys() >= {"base", "config", "concept", "density", "erase"}
    undo = load_patch(undo_file(tmp_path / "patched.safetensors"))
    AppliedPatch(loaded.unet, undo)
    assert equal(dict(loaded.unet.state_dict()), unet(files / "base"))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_export_writes_every_form_in_every_dtype(dtype: str, files: Path, erase: Erase, tmp_path: Path) -> None:
    wanted = getattr(torch, dtype)
    run, form = files / "dog", ["--dtype", dtype, "--json", "--out"]
    erased = {name: values.to(wanted) for name, values in unet(run / "model").items()}
    sizes = [
        done(erase("export", run, "--to", "diffusers", *form, "folder"))["bytes"],
        done(erase("export", run, "--to", "single-file", *form, "one.safetensors"))["bytes"],
        done(erase("export", run, "--to", "patch", *form, "patch.safetensors"))["bytes"],
    ]
    assert equal(unet(tmp_path / "folder"), erased)
    assert {values.dtype for values in load_file(tmp_path / "one.safetensors").values()} == {wanted}
    patch, source = load_patch(tmp_path / "patch.safetensors"), load_patch(run / "patch.safetensors")
    assert all(torch.equal(patch.values[name], values.to(wanted).float()) for name, values in source.values.items())
    assert patch.provenance == source.provenance
    assert sizes[1] == (tmp_path / "one.safetensors").stat().st_size
    assert sizes[2] < sizes[1] / 3


def test_a_plain_model_is_exported_too(files: Path, erase: Erase, tmp_path: Path) -> None:
    done(erase("export", files / "base", "--to", "single-file", "--out", "base.safetensors", "--json"))
    with safe_open(tmp_path / "base.safetensors", "pt") as file:
        origin = json.loads(file.metadata()["erase"])
    assert origin["base"] == model_hash(str(files / "base")) and origin["model"] == "base"


def test_a_base_of_a_variant_is_loaded_as_the_run_loaded_it_or_as_is_said(
    files: Path, tiny_pipeline: StableDiffusionPipeline, erase: Erase, tmp_path: Path
) -> None:
    """A base with weights of the variant fp16 alone: its run knows; a patch that has left it does not, nor does a model."""
    tiny_pipeline.save_pretrained("half", variant="fp16")
    run = shutil.copytree(files / "dog", tmp_path / "run")
    config = {"concept": "dog", "model": "half", "load": {"variant": "fp16", "device": "cuda:7"}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    patch = load_patch(run / "patch.safetensors")
    patch.provenance["base"] = model_hash("half")
    save_patch(patch, run / "patch.safetensors")
    record(run)
    done(erase("apply", "run/patch.safetensors", "--to", "half", "--out", "one", "--json"))
    assert equal(unet(tmp_path / "one"), unet(files / "dog/model"))
    shutil.copy("run/patch.safetensors", "alone.safetensors")
    refused(erase("apply", "alone.safetensors", "--to", "half", "--out", "two"), "give --variant fp16")
    done(erase("apply", "alone.safetensors", "--to", "half", "--out", "two", "--variant", "fp16", "--json"))
    onto = ["--to", files / "other", "--onto-other-base", "--patch-base", "half", "--json"]
    done(erase("apply", "run/patch.safetensors", *onto, "--out", "three"))
    done(erase("export", "run", "--to", "patch", "--with-originals", "--out", "full.safetensors", "--json"))
    assert load_patch(tmp_path / "full.safetensors").originals
    refused(erase("export", "half", "--to", "diffusers", "--out", "four"), "give --variant fp16")
    done(erase("export", "half", "--to", "diffusers", "--out", "four", "--variant", "fp16", "--json"))
    assert equal(unet(tmp_path / "four"), unet(tmp_path / "one")) is False
    assert equal(unet(tmp_path / "four"), dict(tiny_pipeline.unet.state_dict()))


def test_the_originals_of_a_base_that_changed_since_are_refused(files: Path, erase: Erase, tmp_path: Path) -> None:
    """They are the base's own values, bit for bit, while it is what it was; those of a changed one would undo to another."""
    base, run = shutil.copytree(files / "base", tmp_path / "base"), shutil.copytree(files / "dog", tmp_path / "run")
    (run / "config.yaml").write_text(yaml.safe_dump({"concept": "dog", "model": str(base)}))
    before, export = unet(base), ("export", run, "--to", "patch", "--with-originals", "--json", "--out")
    done(erase(*export, "full.safetensors"))
    patch = load_patch(tmp_path / "full.safetensors")
    assert patch.originals.keys() == patch.positions.keys()
    for name, values in patch.originals.items():
        assert torch.equal(values, before[name].flatten()[patch.positions[name]])
    save_file(before | {"conv_in.bias": before["conv_in.bias"] + 1}, base / UNET, metadata={"format": "pt"})
    refused(erase(*export, "later.safetensors"), "base has changed since", "its original values are unknown")
    assert not (tmp_path / "later.safetensors").exists()


def test_a_retrained_run_is_exported_without_a_patch(files: Path, erase: Erase, tmp_path: Path) -> None:
    """It is finished though it has none; what its file's header says comes from its results."""
    run = shutil.copytree(files / "dog", tmp_path / "retrained")
    (run / "patch.safetensors").unlink()
    refused(erase("export", run, "--to", "single-file", "--out", "a.safetensors"), "not finished")
    told = {"base_sha256": "b", "model": "emoji", "concept": "dog", "method": "retrain", "seed": 1, "patch": False}
    (run / "results.json").write_text(json.dumps(told))
    (run / "run.json").write_text(json.dumps({"stages": {"train": {"inputs": "", "files": {"model": sha256(run / "model")}}}}))
    done(erase("export", run, "--to", "single-file", "--out", "a.safetensors", "--json"))
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        header = str(file.metadata())
    assert '"concept": "dog"' in header and '"method": "retrain"' in header and '"seed": "1"' in header
    done(erase("export", run, "--to", "diffusers", "--out", "b", "--json"))
    refused(erase("export", run, "--to", "patch", "--out", "c.safetensors"), "made no patch")


MISTAKES: list[tuple[str, list[str]]] = [
    ("apply", ["there is no patch to apply"]),
    ("apply {dog} --to {base} --strength 2", ["strength is 2.0", "between 0 and 1.5"]),
    ("apply {dog} --to {base} --strength nan", ["between 0 and 1.5"]),
    ("apply {dog} --to {base} --strength 1 --strength 1", ["2 strengths for 1 patches"]),
    ("apply {dog} {neon} {dog} --to {base} --strength 1 --strength 1", ["2 strengths for 3 patches"]),
    ("apply {dog} {neon} {dog} --to {base}", ["patch.safetensors is given more than once", "with the strength"]),
    ("apply {dog} --to {base} --out taken", ["taken already exists"]),
    ("apply {dog} --to {base} --out one.safetensors", ["wrong ending", "a folder"]),
    ("apply {dog} --to {base} --out folder --single-file", ["wrong ending", ".safetensors"]),
    ("apply {dog} --to nowhere", ["there is no model nowhere"]),
    ("apply {dog} --to {base} --undo {base}", ["--undo takes only the model", "leave out the patches, --to"]),
    ("apply --undo {base} --to {base}", ["leave out --to"]),
    ("apply --undo {base} --strength 1 --onto-other-base", ["leave out --strength, --onto-other-base"]),
    ("apply --undo {base} --single-file --dtype float32", ["leave out --single-file, --dtype"]),
    ("apply --undo {base} --patch-base {base}", ["leave out --patch-base"]),
    ("apply {dog} --to {base} --patch-base {base}", ["--patch-base needs --onto-other-base"]),
    ("apply {dog}", ["patch.safetensors was made on base: give that model as --to"]),
    ("apply unfinished --to {base}", ["unfinished has no patch.safetensors", "a finished run's folder"]),
    ("apply --undo {base} --variant fp16", ["leave out --variant"]),
    ("apply {dog} --to {base} --device cuda:9", ["there is no device 'cuda:9' here"]),
    ("export {run} --to diffusers --variant fp16 --out d", ["here no base is loaded"]),
    ("apply missing.safetensors --to {base}", ["not an erasure patch"]),
    ("apply {base}/unet/diffusion_pytorch_model.safetensors --to {base}", ["not an erasure patch", "a whole model"]),
    ("apply empty.safetensors --to {base}", ["not an erasure patch: it is empty"]),
    ("apply cut.safetensors --to {base}", ["not an erasure patch"]),
    ("apply lora.safetensors --to {base}", ["it is a LoRA"]),
    ("apply nan.safetensors --to {base}", ["not finite"]),
    ("apply --undo nowhere", ["there is no folder or file nowhere to undo"]),
    ("export {run}", ["nothing to do"]),
    ("export {run} --to patch", ["give --out"]),
    ("export {run} --to single-file --out taken", ["already exists"]),
    ("export {run} --to single-file --out model.ckpt", ["wrong ending"]),
    ("export {base} --to patch --out p.safetensors", ["not a run's folder"]),
    ("export {run} --to diffusers --with-originals --out d", ["--with-originals needs --to patch"]),
    ("export unfinished --to diffusers --out d", ["not finished"]),
    ("export nowhere --to diffusers --out d", ["there is no model nowhere"]),
    ("export nowhere --to patch --out p.safetensors", ["nowhere is not a folder", "a patch is what a run changed"]),
    ("export {run} --push-to-hub owner/name --out d", ["--out needs --to"]),
    ("export {run} --push-to-hub owner/name --dtype float16", ["--dtype needs --to", "in float32"]),
    ("export {run} --to diffusers --out d --private", ["--private needs --push-to-hub"]),
    ("export {base} --push-to-hub owner/name", ["not a run's folder"]),
    ("export {base} --push-to-hub owner/name --to diffusers --out d", ["not a run's folder"]),
    ("export {run} --push-to-hub name", ["OWNER/NAME"]),
    ("export {run} --push-to-hub owner/na me", ["OWNER/NAME"]),
]


@pytest.mark.parametrize(("line", "words"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_is_one_sentence_and_nothing_is_written(
    line: str, words: list[str], files: Path, erase: Erase, tmp_path: Path
) -> None:
    patch = load_patch(files / "dog/patch.safetensors")
    (tmp_path / "taken").mkdir()
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished/run.json").write_text("{}")
    (tmp_path / "empty.safetensors").touch()
    (tmp_path / "cut.safetensors").write_bytes((files / "dog/patch.safetensors").read_bytes()[:-7])
    save_file({"unet.up.lora_A.weight": torch.zeros(2)}, tmp_path / "lora.safetensors")
    patch.values["conv_in.weight"][0] = torch.nan
    save_patch(patch, tmp_path / "nan.safetensors")
    before = tree(tmp_path)
    names = {"dog": files / "dog/patch.safetensors", "neon": files / "neon/patch.safetensors"}
    places = {key: str(value) for key, value in (names | {"base": files / "base", "run": files / "dog"}).items()}
    arguments = [part.format(**places) for part in line.replace("na me", "na\tme").split(" ")]
    refused(erase(*[part.replace("\t", " ") for part in arguments]), *words)
    assert tree(tmp_path) == before
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"taken", "unfinished"}


@pytest.mark.parametrize(
    "line",
    [
        "apply {run}/patch.safetensors --to {base} --out patched",
        "export {run} --to single-file --out one.safetensors",
        "export {run} --to diffusers --out folder",
        "export {run} --to patch --out p.safetensors",
    ],
)
def test_a_full_disk_is_seen_before_anything_is_written(
    line: str, files: Path, erase: Erase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused one byte short of the estimate, which covers what is then really written (headers and configs apart)."""
    usage = namedtuple("usage", "total used free")
    arguments = line.format(run=files / "dog", base=files / "base").split(" ")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 1000))
    refused(erase(*arguments), "needs 0.00 GB and its disk has 0.00 GB free")
    assert list(tmp_path.iterdir()) == []
    asked: list[int] = []
    for module in ("erase.apply", "erase.export"):
        monkeypatch.setattr(f"{module}.require_space", lambda path, num_bytes: asked.append(num_bytes))
    done(erase(*arguments, "--json"))
    weights = 0
    for path in tmp_path.rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            weights += sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118
    assert weights <= asked[0] <= 1.3 * weights


class Hub:
    """The two calls of the hub's client that an upload makes, kept instead of sent; a repository may be there before."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.private: bool | None = None

    def repo_info(self, _: Any, repo_id: str) -> Any:
        return SimpleNamespace(id=repo_id, private=self.private)

    def create_repo(self, _: Any, repo_id: str, *, private: bool, **options: Any) -> Any:
        self.calls.append(("create_repo", {"repo_id": repo_id, "private": private, **options}))
        self.private = private if self.private is None else self.private
        return type("RepoUrl", (str,), {"repo_id": repo_id})(f"hub://{repo_id}")

    def create_commit(self, _: Any, repo_id: str, operations: list[Any], **options: Any) -> None:
        self.calls.append(("create_commit", {"repo_id": repo_id, "operations": operations, **options}))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub that answers, and a token."""
    fake = Hub()
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda *a, **k: fake.create_repo(*a, **k))  # noqa: PLW0108
    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", lambda *a, **k: fake.repo_info(*a, **k))  # noqa: PLW0108
    monkeypatch.setattr("huggingface_hub.HfApi.create_commit", lambda *a, **k: fake.create_commit(*a, **k))  # noqa: PLW0108
    return fake


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token, and no word that the network is not to be used; no test here reaches beyond this machine."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("erase.hub.get_token", lambda: "not-a-token")


@pytest.mark.parametrize("private", [False, True])
def test_an_upload_is_one_commit_of_pipeline_card_patch_and_evidence(
    private: bool, files: Path, erase: Erase, hub: Hub
) -> None:
    flag = ["--private"] if private else []
    result = done(erase("export", files / "dog", "--push-to-hub", "owner/no-dog", *flag, "--json"))
    assert result["url"] == "hub://owner/no-dog"
    (first, repo), (second, commit) = hub.calls
    assert (first, repo) == ("create_repo", {"repo_id": "owner/no-dog", "private": private, "exist_ok": True})
    assert second == "create_commit" and commit["repo_id"] == "owner/no-dog"
    model = {str(path.relative_to(files / "dog/model")) for path in (files / "dog/model").rglob("*") if path.is_file()}
    uploaded = {operation.path_in_repo: operation.path_or_fileobj for operation in commit["operations"]}
    assert "model_index.json" in uploaded and str(UNET) in uploaded
    assert uploaded.keys() == model | {"README.md", "patch.safetensors", "config.yaml"}
    assert Path(uploaded[str(UNET)]) == files / "dog/model" / UNET
    card = uploaded["README.md"].decode()
    assert 'from_pretrained("owner/no-dog")' in card and "`model/`" not in card and card.startswith("---\n")


@pytest.mark.parametrize("there", [False, True])
def test_a_repository_that_is_there_and_public_gets_nothing_that_was_to_be_private(
    there: bool, files: Path, erase: Erase, hub: Hub
) -> None:
    """The hub leaves a repository as it is when it is made again; `there`: whether it is private."""
    hub.private = there
    result = erase("export", files / "dog", "--push-to-hub", "owner/no-dog", "--private")
    assert [name for name, _ in hub.calls] == ["create_repo", *["create_commit"] * there]
    if not there:
        refused(result, "owner/no-dog exists and is public", "leave out --private")


@pytest.fixture
def judged(files: Path, tmp_path: Path, audited_run: Callable[..., None]) -> Callable[..., Path]:
    """Makes a copy of the run with an audit as `audited_run` takes it (`seen`: none without), and a collapse gate."""

    def make(seen: tuple[bool, ...] = (), collapsed: bool = False, **more: Any) -> Path:
        run = shutil.copytree(files / "dog", tmp_path / "judged")
        (run / "results.json").write_text(json.dumps({"collapse": {"passed": not collapsed}}))
        if seen:
            audited_run(run, seen, **more)
        return run

    return make


PASSED = (False, False, False)


@pytest.mark.parametrize(
    ("audit", "words"),
    [
        ({}, ["there is no audit of its model (`erase audit"]),
        ({"seen": PASSED}, []),
        ({"seen": (True, False)}, ["its audit FAILED: prompts"]),
        ({"seen": PASSED, "quick": True}, ["few tries"]),
        ({"seen": PASSED, "partial": True}, ["which does not pass the gate"]),
        ({"seen": PASSED, "only": "mask"}, ["whether dog is suppressed was not asked"]),
        ({"seen": PASSED, "model": {"name": "model", "sha256": "another"}}, ["there is no audit of its model"]),
        ({"seen": PASSED, "collapsed": True}, ["the collapse gate failed"]),
        ({"collapsed": True}, ["there is no audit", "the collapse gate failed"]),
    ],
)
def test_an_upload_that_the_gate_has_not_released_goes_on_with_one_warning(
    audit: dict[str, Any], words: list[str], judged: Callable[..., Path], erase: Erase, hub: Hub
) -> None:
    result = erase("export", judged(**audit), "--push-to-hub", "owner/no-dog", "--json")
    assert done(result)["url"] == "hub://owner/no-dog" and len(hub.calls) == 2
    assert len(result.stderr.strip().splitlines()) == bool(words)
    assert not words or ("warning" in result.stderr and "uploaded anyway" in result.stderr)
    for word in words:
        assert word in result.stderr


CARD = """---
library_name: diffusers
---
The strongest attack, prompts:

| {base}(audit/dog/prompts/base/0001.png) | {model}(audit/dog/prompts/model/0000.png) |
| {model}(audit/dog/prompts/model/0001.png) | {model}(audit/dog/prompts/model/0007.png) |
| {model}(audit/../model/0001.png) | {model}(/elsewhere.png) |

PASS means suppressed; {told} and the pictures: `audit/audit.html`.
"""


@pytest.mark.parametrize(("private", "told"), [(False, "every variant"), (True, "every way of asking")])
def test_the_card_on_the_hub_shows_what_went_up_with_it_and_none_of_what_was_to_be_forgotten(
    private: bool, told: str, judged: Callable[..., Path], erase: Erase, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the base's picture, not the one in which the concept was seen, none that is not there; of a private audit none.

    `told`: how the card, or one of an older version, points to the audit's page.
    """
    monkeypatch.setattr("eval.audit_report.card_with_audit", lambda card, _: card)  # as it was written
    run = judged((True, False, False), private=private)
    (run / "README.md").write_text(CARD.format(base="![base]", model="![model]", told=told))
    (run / "audit" / "audit.html").write_text("pictures")
    done(erase("export", run, "--push-to-hub", "owner/no-dog", "--json"))
    uploaded = {operation.path_in_repo: operation.path_or_fileobj for operation in hub.calls[1][1]["operations"]}
    shown = [] if private else ["audit/dog/prompts/model/0001.png"]
    assert [name for name in uploaded if name.startswith("audit")] == ["audit/audit.json", *shown]
    card = uploaded["README.md"].decode()
    assert re.findall(r"\]\(([^)]*)\)", card) == [*shown, "/elsewhere.png"]
    assert "audit.html" not in card and "every figure: `audit/audit.json`" in card


def test_the_card_on_the_hub_tells_of_the_audit_that_goes_up_with_it(
    judged: Callable[..., Path], erase: Erase, hub: Hub
) -> None:
    """A run of other versions: README.md still has the audit before, which passed."""
    run = judged((True, False, False))
    card = (run / "README.md").read_text()
    (run / "README.md").write_text(f"{card}\n## Audit\n\nPassed: all.\n\nPASS: `audit/audit.html`.\n\nMore.\n")
    done(erase("export", run, "--push-to-hub", "owner/no-dog", "--json"))
    told = {operation.path_in_repo: operation.path_or_fileobj for operation in hub.calls[1][1]["operations"]}[
        "README.md"
    ].decode()
    assert "FAILED: prompts" in told and "Passed: all." not in told and told.rstrip().endswith("More.")
    assert "every figure: `audit/audit.json`" in told


def test_the_card_of_a_run_whose_audit_is_gone_points_to_none(judged: Callable[..., Path], erase: Erase, hub: Hub) -> None:
    run = judged()
    (run / "README.md").write_text(CARD.format(base="![base]", model="![model]", told="every variant"))
    done(erase("export", run, "--push-to-hub", "owner/no-dog", "--json"))
    card = {operation.path_in_repo: operation.path_or_fileobj for operation in hub.calls[1][1]["operations"]}["README.md"]
    assert b"](audit" not in card and b"audit.json" not in card and b"audit.html" not in card


class Forbidden(BaseHTTPRequestHandler):
    """A hub that refuses everything."""

    def do_POST(self) -> None:
        self.send_response(403)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Nothing to say."""


def test_without_leave_a_network_or_a_token_the_upload_is_one_sentence(
    files: Path, erase: Erase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's real client against a server on this machine that refuses, and against a port that nobody listens on."""
    upload = ["export", files / "dog", "--push-to-hub", "owner/no-dog"]
    refused(erase(*upload), "the hub cannot be reached")
    server = HTTPServer(("127.0.0.1", 0), Forbidden)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    refused(erase(*upload), "the hub refused owner/no-dog (status 403)")
    server.shutdown()
    server.server_close()
    monkeypatch.setattr("erase.hub.get_token", lambda: None)
    refused(erase(*upload), "no access token", "hf auth login")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused(erase(*upload), "HF_HUB_OFFLINE is set")
