"""The gate's mask on models in another number format than their base: rounding is no change, what goes beyond it is one."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_single_file import tiny_2, tiny_xl
from torch import Tensor

from erase.config import LoadConfig
from erase.quiet import Silent
from erase.saliency import save_mask
from eval.audit import Audit, audit
from eval.audit_limits import Limits
from eval.audit_options import AuditOptions
from eval.audit_subject import find_subject
from pipelines.single_file import write_single_file

INSIDE, OUTSIDE = "conv_out.bias", "mid_block.resnets.0.conv1.weight"
HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@pytest.fixture(scope="module", params=["1.x", "2.x", "xl"])
def pipeline(request: pytest.FixtureRequest, tiny_pipeline: Any, tokenizer: Any) -> Any:
    """A tiny pipeline of each family; not to be changed."""
    return {"1.x": lambda: tiny_pipeline, "2.x": lambda: tiny_2(tokenizer), "xl": lambda: tiny_xl(tokenizer)}[request.param]()


def changed(pipeline: Any, **changes: Callable[[Tensor], Tensor]) -> Any:
    """The pipeline with a UNet of its own, some tensors of which are changed (`__` stands for a dot)."""
    unet = copy.deepcopy(pipeline.unet)
    weights = dict(unet.named_parameters())
    with torch.no_grad():
        for name, change in changes.items():
            weights[name.replace("__", ".")].copy_(change(weights[name.replace("__", ".")].clone()))
    flags = {"requires_safety_checker": False} if "safety_checker" in pipeline.components else {}
    return type(pipeline)(**{**pipeline.components, "unet": unet}, **flags)


def written(pipeline: Any, path: Path, dtype: torch.dtype = torch.float32) -> Path:
    """The pipeline as one file, or as a folder whose weights of another format are a variant."""
    if path.suffix:
        write_single_file(pipeline, path, {}, dtype, "")
        return path
    pipeline.save_pretrained(path)
    for file in path.glob("*/*.safetensors") if dtype != torch.float32 else ():
        tensors = {name: values.to(dtype) if values.is_floating_point() else values for name, values in load_file(file).items()}
        save_file(tensors, file.with_name(f"{file.stem}.fp16.safetensors"), {"format": "pt"})
        file.unlink()
    return path


def one_further(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """One weight moved to the next value of a format, the first rounded to it."""

    def change(values: Tensor) -> Tensor:
        first = values.view(-1)[0].to(dtype)
        values.view(-1)[0] = torch.nextafter(first, torch.tensor(9.0, dtype=dtype)).float()
        return values

    return change


def masked(pipeline: Any, base: Path, model: Path, folder: Path) -> Audit:
    """The audit of the mask, which lets one bias change."""
    shapes = {name: values.shape for name, values in pipeline.unet.named_parameters()}
    save_mask({name: torch.full(shape, name == INSIDE) for name, shape in shapes.items()}, folder / "mask.safetensors", {})
    variant = LoadConfig(variant="fp16") if list(model.glob("unet/*.fp16.*")) else LoadConfig()
    claim = (str(folder / "mask.safetensors"),)
    subject = find_subject(str(model), baseline=str(base), retrain=None, claim=claim, asked=variant)
    return audit(subject, AuditOptions(only=("mask",)), Limits(), folder / "out", Silent())


@pytest.mark.parametrize(
    ("base", "model", "kind"),
    [
        ("base", "model.safetensors", "float16"),
        ("base.safetensors", "model.safetensors", "bfloat16"),
        ("base.safetensors", "model", "float16"),
    ],
)
def test_rounding_to_half_precision_is_no_change_and_one_step_further_is(base, model, kind, pipeline, tmp_path) -> None:
    """A float32 base as folder or file, a half-precision model as folder or file: inside it may differ, outside it may not."""
    before = written(pipeline, tmp_path / base)
    erased = {"conv_out__bias": lambda values: values + 1}
    after = written(changed(pipeline, **erased), tmp_path / model, HALVES[kind])
    record = masked(pipeline, before, after, tmp_path)
    assert record.mask is not None and record.lines[0].status == "PASS", record.lines[0].reason
    assert record.mask.changed_outside == 0 < record.mask.changed_inside
    assert list(record.mask.retyped) == [f"float32 -> {kind}"]
    moved = {"mid_block__resnets__0__conv1__weight": one_further(HALVES[kind])}
    after = written(changed(pipeline, **erased, **moved), tmp_path / f"moved-{model}", HALVES[kind])
    record = masked(pipeline, before, after, tmp_path)
    assert record.mask is not None and record.lines[0].status == "FAIL"
    assert record.mask.outside == {f"unet.{OUTSIDE}": 1} and f"unet.{OUTSIDE}[0, 0, 0, 0]" in record.lines[0].reason


@pytest.mark.parametrize(("base", "model"), [("base", "model.safetensors"), ("base.safetensors", "model")])
def test_a_wider_model_is_held_against_its_base_bit_for_bit(base, model, pipeline, tmp_path) -> None:
    """A half-precision base and a float32 model made from it: a step that half precision could not hold is one outside."""
    rounded = changed(pipeline)
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if getattr(rounded, part, None) is not None:
            setattr(rounded, part, copy.deepcopy(getattr(rounded, part)).half().float())
    before = written(rounded, tmp_path / base, torch.float16)
    if before.is_dir():  # of a base that is no run the weights without a suffix are meant
        for file in before.glob("*/*.fp16.safetensors"):
            file.rename(file.with_name(file.name.replace(".fp16", "")))
    erased = {"conv_out__bias": lambda values: values + 1e-6}
    record = masked(pipeline, before, written(changed(rounded, **erased), tmp_path / model), tmp_path)
    assert record.mask is not None and record.lines[0].status == "PASS", record.lines[0].reason
    assert record.mask.changed_inside and list(record.mask.retyped) == ["float16 -> float32"]
    moved = {"mid_block__resnets__0__conv1__weight": one_further(torch.float32)}
    record = masked(pipeline, before, written(changed(rounded, **erased, **moved), tmp_path / f"moved-{model}"), tmp_path)
    assert record.mask is not None and record.mask.outside == {f"unet.{OUTSIDE}": 1}


def test_each_tensor_of_a_file_is_compared_in_its_own_format(pipeline, tmp_path) -> None:
    """A half-precision denoiser beside a float32 autoencoder, in which one step of float32 counts."""
    before = written(pipeline, tmp_path / "base")
    half = written(pipeline, tmp_path / "half.safetensors", torch.float16)
    whole = load_file(written(pipeline, tmp_path / "whole.safetensors"))
    mixed = {name: whole[name] if "first_stage" in name else values for name, values in load_file(half).items()}
    with safe_open(half, "pt") as file:
        metadata = file.metadata()
    save_file(mixed, tmp_path / "mixed.safetensors", metadata)
    record = masked(pipeline, before, tmp_path / "mixed.safetensors", tmp_path)
    assert record.mask is not None and record.lines[0].status == "PASS", record.lines[0].reason
    num = sum("first_stage" not in name for name in mixed)
    assert 0 < record.mask.retyped["float32 -> float16"] <= 3 * num, "query, key and value may be one tensor in the file"
    one_further(torch.float32)(mixed["first_stage_model.decoder.conv_in.weight"])
    save_file(mixed, tmp_path / "mixed.safetensors", metadata)
    record = masked(pipeline, before, tmp_path / "mixed.safetensors", tmp_path)
    assert record.mask is not None and record.mask.outside == {"vae.decoder.conv_in.weight": 1}
