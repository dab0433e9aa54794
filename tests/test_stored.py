"""The gate's mask on files that were laid to deceive it, or that a user mixed up: all that is loaded is compared."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import PROMPTS, SMALL, run_once, tiny_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_audit import SMALL as FEW
from test_audit import erase, one_ulp, stub_eyes
from test_audit_formats import written
from torch import Tensor

import eval.audit
import eval.audit_sides
from erase.config import LoadConfig
from erase.files import hash_of, sha256
from erase.folder import require_intact
from erase.saliency import load_mask, save_mask
from pipelines.check import weight_files
from pipelines.load import load

UNET, TEXT = Path("unet/diffusion_pytorch_model.safetensors"), Path("text_encoder/model.safetensors")
OUTSIDE, ORIGINAL = "mid_block.resnets.0.conv1.weight", "model.diffusion_model.middle_block.0.in_layers.2.weight"


@pytest.fixture(scope="module")
def base(tiny_pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as `base`, and as one file."""
    folder = tmp_path_factory.mktemp("stored") / "base"
    written(tiny_pipeline, folder.with_suffix(".safetensors"))
    return written(tiny_pipeline, folder)


@pytest.fixture
def model(base: Path, tmp_path: Path) -> Path:
    """A copy of it, to be tampered with."""
    shutil.copyfile(base.with_suffix(".safetensors"), tmp_path / "model.safetensors")
    return Path(shutil.copytree(base, tmp_path / "model"))


@pytest.fixture
def audited(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Callable[..., tuple[int, str]]:
    """(the exit code, the mask's line or what was said) of an audit of the mask; cross-attention may differ."""

    def run(model: Path, *more: Any, baseline: Path = base) -> tuple[int, str]:
        place = tmp_path / f"audit of {model.name}"
        options = ["--baseline", baseline, "--only", "mask", "--claim", "cross-attention", "--out", place, "--json"]
        code, out, err = erase(["audit", model, *options, *more], monkeypatch, capsys)
        assert "Traceback" not in err
        assert code == 2 or (place / "audit.json").is_file()
        return code, json.loads(out)["lines"][0]["reason"] if out else err

    return run


def changed(file: Path, to: Path | None = None, dtype: Any = None, **changes: Callable[[Tensor], Tensor] | None) -> None:
    """Write a file anew with all cast to a dtype and tensors changed (`__` stands for a dot), added, or taken away (None)."""
    with safe_open(file, "pt") as handle:
        metadata = handle.metadata()
    tensors = {name: values.to(dtype or values.dtype) for name, values in load_file(file).items()}
    for key, change in changes.items():
        name = key.replace("__", ".")
        if change is None:
            del tensors[name]
        else:
            tensors[name] = change(tensors.get(name, torch.zeros(1)).clone()).contiguous()
    save_file(tensors, to or file, metadata)


OTHER = {OUTSIDE.replace(".", "__"): one_ulp}


# ---- which files are loaded


def shards(file: Path, suffix: str = "") -> None:
    """Put an index and two shards with other values beside a file, as the libraries write them."""
    tensors = {name: values + 1 for name, values in load_file(file).items()}
    stem, dot = file.name.split(".")[0], f".{suffix}" if suffix else ""
    names = [f"{stem}{dot}-0000{k}-of-00002.safetensors" for k in (1, 2)]
    weight_map = {name: names[k % 2] for k, name in enumerate(sorted(tensors))}
    for shard in names:
        part = {name: tensors[name] for name in tensors if weight_map[name] == shard}
        save_file(part, file.with_name(shard), {"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    file.with_name(f"{stem}.safetensors.index{dot}.json").write_text(json.dumps(index))


@pytest.mark.parametrize("layout", ["whole", "decoy", "index", "variant", "variant index", "named"])
def test_the_files_that_are_compared_are_those_that_the_libraries_load(layout: str, model: Path) -> None:
    """Every layout in the UNet and in the text encoder, whose libraries have different rules; the values tell."""
    variant = "fp16" if "variant" in layout else None
    for file in (UNET, TEXT):
        for name in ("zz.safetensors", "aa.fp16.safetensors"):
            save_file({name: values + 2 for name, values in load_file(model / file).items()}, model / file.parent / name)
        if "variant" in layout:
            shutil.copyfile(model / file, (model / file).with_suffix(".fp16.safetensors"))
        if "index" in layout:
            shards(model / file, variant or "")
    if variant:
        shutil.copyfile(model / "vae" / UNET.name, (model / "vae" / UNET.name).with_suffix(".fp16.safetensors"))
    if layout == "named":
        config = json.loads((model / "text_encoder/config.json").read_text())
        (model / "text_encoder/config.json").write_text(json.dumps(config | {"transformers_weights": "zz.safetensors"}))
    pipeline = load(str(model), LoadConfig(variant=variant)).pipeline
    for part, file in (("unet", UNET), ("text_encoder", TEXT)):
        tensors = {}
        for path in weight_files(model / file.parent, variant):
            tensors |= load_file(path)
        state = getattr(pipeline, part).state_dict()
        assert all(torch.equal(values, tensors[name]) for name, values in state.items())
        assert len(weight_files(model / file.parent, variant)) == (2 if "index" in layout and part == "unet" else 1)


def test_a_decoy_beside_the_weights_hides_nothing(model: Path, audited: Any) -> None:
    """The base's own weights under a name that comes last, beside others that are loaded; and the reverse."""
    unet = model / UNET
    shutil.copyfile(unet, unet.with_name("zz.safetensors"))
    assert audited(model)[0] == 0, "the same weights twice are no fault"
    changed(unet, unet.with_name("zz.safetensors"), dtype=torch.float16)
    assert audited(model)[0] == 0, "nor are they in half precision, as a variant has them"
    changed(unet, **OTHER)
    code, told = audited(model)
    assert code == 1 and f"1 weights changed outside the mask, first unet.{OUTSIDE}" in told
    shutil.copyfile(unet, unet.with_name("zz.safetensors"))
    shutil.copyfile(unet.with_name("zz.safetensors"), unet)
    changed(unet, unet.with_name("zz.safetensors"), conv_in__bias=lambda values: values + 1)
    assert "1 files beside the loaded weights hold others, first unet/zz.safetensors" in audited(model)[1]


def test_a_whole_file_beside_an_index_is_none_that_counts(model: Path, audited: Any) -> None:
    shards(model / UNET)
    code, told = audited(model)
    assert code == 1 and "weights changed outside the mask" in told and "first unet/diffusion_pytorch_model.safetensors" in told


@pytest.mark.parametrize("in_two_files", [False, True])
def test_one_tensor_under_two_names_is_refused(in_two_files: bool, model: Path, audited: Any) -> None:
    file = model / (UNET if in_two_files else TEXT)
    if in_two_files:
        shards(file)
        first, second = sorted(file.parent.glob("*-of-*.safetensors"))
        tensors = load_file(first)
        save_file(load_file(second) | {min(tensors): tensors[min(tensors)]}, second, {"format": "pt"})
    else:
        short = next(name for name in load_file(file) if "final_layer_norm.weight" in name).removeprefix("text_model.")
        tensors = {name.removeprefix("text_model."): values for name, values in load_file(file).items()}
        save_file(tensors | {f"text_model.{short}": tensors[short] + 1}, file, {"format": "pt"})
    code, told = audited(model)
    assert code == 2 and "which is there already, under another name or in another file" in told and str(file.parent) in told


# ---- single files


def test_a_second_denoiser_in_a_single_file_is_not_overlooked(base: Path, model: Path, audited: Any) -> None:
    """A whole `model_ema` of the original weights; what published files hold beside the weights is no fault."""
    file, single = model.with_suffix(".safetensors"), base.with_suffix(".safetensors")
    schedule = {"betas": lambda _: torch.ones(1000), "cond_stage_model__logit_scale": lambda _: torch.ones(())}
    changed(file, **schedule)
    assert audited(file)[0] == audited(file, baseline=single)[0] == 0
    ema = {f"model_ema__{name.replace('.', '')}": (lambda _, v=values: v) for name, values in load_file(single).items()}
    changed(file, **ema)
    for baseline in (base, single):
        code, told = audited(file, baseline=baseline)
        assert code == 1 and f"{len(ema)} tensors added, first model_ema." in told
    both = model.parent / "both.safetensors"
    shutil.copyfile(file, both)
    assert audited(file, baseline=both)[0] == 0 and audited(single, baseline=both)[0] == 0, "taken away, it does no harm"
    changed(file, **{min(ema): lambda values: values + 1})
    code, told = audited(file, baseline=both)
    assert code == 1 and f"changed outside the mask, first {min(ema).replace('__', '.')}" in told


@pytest.mark.parametrize("against", ["folder", "file"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda values: values * float("nan"), f"1 tensors not finite, first unet.{OUTSIDE}"),
        (None, f"1 tensors removed, first unet.{OUTSIDE}"),
        (lambda values: values[:-1], f"1 tensors reshaped, first unet.{OUTSIDE}"),
        (one_ulp, f"1 weights changed outside the mask, first unet.{OUTSIDE}"),
    ],
)
def test_a_broken_single_file_is_a_verdict(
    change: Any, words: str, against: str, base: Path, model: Path, audited: Any
) -> None:
    file = model.with_suffix(".safetensors")
    changed(file, **{ORIGINAL.replace(".", "__"): change})
    code, told = audited(file, baseline=base if against == "folder" else base.with_suffix(".safetensors"))
    assert code == 1 and words in told


# ---- number formats


def below_float32(values: Tensor) -> Tensor:
    values = values.double()
    values.view(-1)[3] += 1e-12
    return values


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_change_below_float32_is_seen_in_a_wider_format(kind: str, model: Path, audited: Any) -> None:
    file, name = (model / UNET, OUTSIDE) if kind == "folder" else (model.with_suffix(".safetensors"), ORIGINAL)
    target = model if kind == "folder" else file
    changed(file, dtype=torch.float64)
    assert audited(target)[0] == 0
    changed(file, **{name.replace(".", "__"): below_float32})
    code, told = audited(target)
    before, after = told.split(": ")[1].split(" -> ")
    assert code == 1 and f"unet.{OUTSIDE}[0, 0, 1, 0]" in told and before != after


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_eight_bits_are_the_base_rounded_to_them(kind: str, model: Path, audited: Any) -> None:
    file, name = (model / UNET, OUTSIDE) if kind == "folder" else (model.with_suffix(".safetensors"), ORIGINAL)
    target = model if kind == "folder" else file

    def next_value(values: Tensor) -> Tensor:
        values.view(torch.uint8).view(-1)[0] += 1
        return values

    changed(file, dtype=torch.float8_e4m3fn)
    assert audited(target)[0] == 0
    changed(file, **{name.replace(".", "__"): next_value})
    code, told = audited(target)
    assert code == 1 and f"1 weights changed outside the mask, first unet.{OUTSIDE}[0, 0, 0, 0]" in told


@pytest.mark.parametrize(
    ("dtype", "code", "words"),
    [
        (torch.float8_e8m0fnu, 2, f"holds {OUTSIDE} as F8_E8M0, which is not compared"),
        (torch.int8, 1, f"1 tensors of another kind of number, first unet.{OUTSIDE}"),
    ],
)
def test_other_formats_are_refused_or_fail(dtype: Any, code: int, words: str, model: Path, audited: Any) -> None:
    """Whole numbers in place of others, all zero as weights below 1 are when they are cut off, are no rounding."""
    changed(model / UNET, **{OUTSIDE.replace(".", "__"): lambda values: values.to(dtype)})
    found = audited(model)
    assert found[0] == code and words in found[1]


# ---- what ends an audit early


@pytest.mark.parametrize("change", ["removed", "added", "added and not loaded"])
def test_what_cannot_be_loaded_is_told_before_the_base_is_drawn(
    change: str, model: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Of a model that is known to fail no load is tried; where a tensor was added, it is tried before anything is drawn."""
    changed(model / UNET, **({OUTSIDE.replace(".", "__"): None} if change == "removed" else {"new": lambda values: values}))
    if change.endswith("loaded"):
        (model / "text_encoder" / "config.json").write_text('{"architectures": ["CLIPTextModel"], "hidden_size": 7}')
    loaded: list[str] = []
    original = eval.audit_sides.load_side
    for module in (eval.audit, eval.audit_sides):
        monkeypatch.setattr(module, "load_side", lambda subject, role: (loaded.append(role), original(subject, role))[1])
    monkeypatch.setattr(eval.audit_sides, "eyes_for", lambda *_: stub_eyes())
    options = ["--baseline", base, "--concept", "dog", "--only", "mask,prompts", "--claim", "cross-attention", *FEW]
    code, out, err = erase(["audit", model, *options, "--out", tmp_path / "out"], monkeypatch, capsys)
    assert code == 1 and f"1 tensors {change.split()[0]}" in out and "Traceback" not in err
    assert loaded == (["base", "model"] if change == "added" else ["base"])
    assert ("cannot be loaded" in out) == (change != "added")
    assert not json.loads((tmp_path / "out" / "audit.json").read_text())["passed"]


# ---- what a user mixes up


def as_variant(folder: Path) -> Path:
    for file in folder.glob("*/*.safetensors"):
        changed(file, file.with_suffix(".fp16.safetensors"), dtype=torch.float16)
        file.unlink()
    return folder


def test_a_variant_is_asked_for_by_the_option_that_the_message_names(base: Path, model: Path, audited: Any) -> None:
    """Of a base, of a model, of both: each side that has it is loaded by it."""
    half = as_variant(model)
    code, told = audited(base, baseline=half)
    assert code == 2 and "give --variant fp16" in told and str(half) in told
    assert audited(half, "--variant", "fp16")[0] == audited(half, "--variant", "fp16", baseline=half)[0] == 0
    assert audited(base, "--variant", "fp16", baseline=half)[0] == 1, "float32 weights differ from the half-precision base"
    code, told = audited(half, "--variant", "bf16")
    assert code == 2 and f"{base / 'unet'} has no weights of the variant 'bf16'" in told


def test_a_baseline_that_is_none_is_one_sentence(model: Path, audited: Any, tmp_path: Path) -> None:
    run, empty = tmp_path / "run", tmp_path / "empty"
    for folder in (run, empty):
        folder.mkdir()
    (run / "config.yaml").write_text("model: emoji\n")
    for baseline, words in ((run, f"--baseline {run} is a run"), (empty, f"{empty} has no model_index.json")):
        code, told = audited(model, baseline=baseline)
        assert code == 2 and words in told and "min()" not in told
    (model / UNET).write_bytes(b"")
    code, told = audited(model)
    assert code == 2 and f"{model / UNET} is not a whole safetensors file (0 bytes): it is empty" in told


# ---- a run's own record


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a tiny model."""
    folder = tmp_path_factory.mktemp("made")
    values = SMALL | {"model": tiny_model(folder), "prompts": PROMPTS, "saliency": SMALL["saliency"] | {"density": 0.3}}
    run_once(values, folder / "run")
    return folder / "run"


def widened(run: Path) -> None:
    """Set one bit more in a run's mask, and change the weight that it lets change."""
    mask, provenance = load_mask(run / "mask.safetensors")
    name = next(name for name in sorted(mask) if not mask[name].all())
    at = tuple((~mask[name]).nonzero()[0].tolist())
    mask[name][at] = True
    save_mask(mask, run / "mask.safetensors", provenance)
    tensors = load_file(run / "model" / UNET)
    tensors[name][at] = torch.nextafter(tensors[name][at], torch.tensor(9.0))
    save_file(tensors, run / "model" / UNET, {"format": "pt"})


def rewritten(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change run.json and give it the hash that it then has."""
    record = json.loads((run / "run.json").read_text())
    del record["sha256"]
    change(record)
    (run / "run.json").write_text(json.dumps({**record, "sha256": hash_of(record)}))


def hashed_again(run: Path, record: dict[str, Any]) -> None:
    for entry in record["stages"].values():
        entry["files"] = {name: sha256(run / name) for name in entry["files"]}


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "gone": (lambda run: (run / "run.json").unlink(), "run.json, which tells what the run wrote, is not there"),
    "damaged": (lambda run: (run / "run.json").write_text("{}"), "run.json, which tells what the run wrote, is damaged"),
    "as it was": (lambda _: None, "is not what its run wrote (its hash differs from run.json)"),
    "silent": (lambda run: rewritten(run, lambda record: record["stages"].clear()), "(run.json does not name it)"),
    "rewritten": (
        lambda run: rewritten(run, lambda record: hashed_again(run, record)),
        "patch.safetensors choose different weights of ",
    ),
}


@pytest.mark.parametrize("kind", list(DAMAGE))
def test_a_wider_mask_and_a_changed_weight_fail_whatever_becomes_of_the_record(
    kind: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    run, (damage, words) = Path(shutil.copytree(made, tmp_path / "run")), DAMAGE[kind]
    audit = ["audit", run, "--only", "mask", "--out", tmp_path / "out", "--json"]
    assert erase(audit, monkeypatch, capsys)[0] == 0
    widened(run)
    damage(run)
    code, out, _ = erase(audit, monkeypatch, capsys)
    assert code == 1 and words in json.loads(out)["lines"][0]["reason"]
    for arguments in (["export", run, "--to", "diffusers", "--out", tmp_path / "x"], ["eval", run, "--out", tmp_path / "x"]):
        if kind in ("gone", "damaged", "as it was"):
            code, _, err = erase(arguments, monkeypatch, capsys)
            assert code == 2 and "Traceback" not in err and not (tmp_path / "x").exists()
            assert words in err


def test_another_base_in_the_config_and_a_patch_taken_away_fail(
    made: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    run = Path(shutil.copytree(made, tmp_path / "run"))
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("seed: 0", "seed: 1"))
    (run / "patch.safetensors").unlink()
    _, out, _ = erase(["audit", run, "--only", "mask", "--json"], monkeypatch, capsys)
    told = json.loads(out)["lines"][0]["reason"]
    assert "config.yaml is not what its run wrote (seed is 0 there and 1 here)" in told
    assert "patch.safetensors, which tells the mask too, is not there" in told


def test_what_lies_in_no_run_is_held_against_no_record(made: Path, tmp_path: Path) -> None:
    shutil.copyfile(made / "patch.safetensors", tmp_path / "patch.safetensors")
    require_intact(tmp_path / "patch.safetensors")
