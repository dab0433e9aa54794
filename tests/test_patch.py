"""The patch (bit for bit at 0 and 1, linear in between, undone exactly) and the audit of what moved."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from erase.export import Audit, audit, save_model
from erase.patch import AppliedPatch, Patch, load_patch, patch_of, save_patch
from erase.saliency import save_mask
from erase.salient import SalientWeights
from pipelines.load import load
from pipelines.stable_diffusion import StableDiffusion

PROVENANCE = {"base": "abc", "concept": "dog — 犬", "density": "0.3"}


def toy(channels_last: bool = False) -> nn.Module:
    torch.manual_seed(13)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(24, 5))
    return model.to(memory_format=torch.channels_last) if channels_last else model


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(model: nn.Module, expected: dict[str, Tensor]) -> bool:
    """Bit for bit: -0.0 is not 0.0."""
    return all(
        torch.equal(p.detach().contiguous().view(torch.int32), expected[name].contiguous().view(torch.int32))
        for name, p in model.named_parameters()
    )


def trained(channels_last: bool = False) -> tuple[nn.Module, dict[str, Tensor], Patch, dict[str, Tensor]]:
    """(erased model, its original weights, its patch, the mask)."""
    model = toy(channels_last)
    generator = torch.Generator().manual_seed(14)
    mask = {name: torch.rand(p.shape, generator=generator) < 0.3 for name, p in model.named_parameters()}
    mask["2.bias"] = torch.zeros(6, dtype=torch.bool)
    before = snapshot(model)
    salient = SalientWeights(model, mask)
    rule = torch.optim.Adam(salient.parameters(), 0.05)
    for _ in range(2):
        model(torch.randn(4, 3, 6, 6, generator=generator)).square().sum().backward()
        rule.step()
        rule.zero_grad()
        salient.write()
    salient.close()
    return model, before, patch_of(salient, model, PROVENANCE), mask


@pytest.mark.parametrize("channels_last", [False, True])
def test_save_load_apply_is_the_erased_model_bit_for_bit(channels_last: bool, tmp_path: Path) -> None:
    erased, before, patch, mask = trained(channels_last)
    save_patch(patch, tmp_path / "patch.safetensors")
    loaded = load_patch(tmp_path / "patch.safetensors")
    assert loaded.provenance == PROVENANCE
    assert loaded.shapes == {name: tuple(chosen.shape) for name, chosen in mask.items() if chosen.any()}
    model = toy(channels_last)
    applied = AppliedPatch(model, loaded)
    assert applied.strengths == (1.0,)
    assert same(model, snapshot(erased)) and not same(model, before)


def test_the_file_is_as_small_as_the_mask_is_sparse(tmp_path: Path) -> None:
    """One weight in a hundred: four bytes for each, and a bit for every weight."""
    model = nn.Linear(400, 250, bias=False)
    chosen = torch.zeros(250, 400, dtype=torch.bool)
    chosen.view(-1)[::100] = True
    save_patch(patch_of(SalientWeights(model, {"weight": chosen}), model, {}), tmp_path / "patch")
    assert (tmp_path / "patch").stat().st_size < 4 * 1000 + 100_000 / 8 + 500


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1.5), max_size=5))
def test_any_sequence_of_dials_is_undone_bit_for_bit(strengths: list[float]) -> None:
    _, before, patch, _ = trained()
    model = toy()
    applied = AppliedPatch(model, patch, 0.5)
    for strength in strengths:
        applied.dial(strength)
    applied.dial(1.0)
    once = toy()
    AppliedPatch(once, patch)
    assert same(model, snapshot(once)), "strength 1 depends on what was dialled before"
    applied.undo()
    assert same(model, before)
    assert applied.strengths == (0,)


def test_a_zero_keeps_its_sign() -> None:
    """Bit for bit at 0 and 1 for -0.0 too, where original + 0 * (erased - original) is not."""
    _, _, patch, mask = trained()
    model = toy()
    first = tuple(mask["0.weight"].nonzero()[0].tolist())
    second = tuple(mask["0.weight"].nonzero()[1].tolist())
    with torch.no_grad():
        model[0].weight[first], model[0].weight[second] = -0.0, -1.0
    patch.values["0.weight"][:2] = torch.tensor([1.0, -0.0])
    before = snapshot(model)
    applied = AppliedPatch(model, patch)
    assert model[0].weight[first] == 1 and torch.signbit(model[0].weight[second]) and model[0].weight[second] == 0
    applied.undo()
    assert same(model, before)


@pytest.mark.parametrize("strength", [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.2, 1.5])
def test_in_between_the_weights_are_linear_in_the_strength(strength: float) -> None:
    erased, before, patch, mask = trained()
    model = toy()
    AppliedPatch(model, patch, strength)
    for name, parameter in model.named_parameters():
        expected = before[name].double() + strength * (erased.get_parameter(name).double() - before[name].double())
        torch.testing.assert_close(parameter.detach().double(), expected.detach(), rtol=1e-6, atol=1e-7)
        assert torch.equal(parameter[~mask[name]], before[name][~mask[name]]), "a weight outside the mask moved"


@pytest.mark.parametrize("strength", [-0.1, 1.6, math.nan, math.inf])
def test_a_strength_out_of_range_is_refused_and_changes_nothing(strength: float) -> None:
    _, before, patch, _ = trained()
    model = toy()
    with pytest.raises(ValueError, match=r"strength is .* between 0 and 1\.5"):
        AppliedPatch(model, patch, strength)
    assert same(model, before)
    applied = AppliedPatch(model, patch, 0.7)
    at_seventy = snapshot(model)
    with pytest.raises(ValueError, match="strength"):
        applied.dial(strength)
    assert same(model, at_seventy) and applied.strengths == (0.7,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_patch_of_half_precision_is_within_half_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    """At about half the size; the weights outside the mask are untouched all the same."""
    erased, before, patch, mask = trained()
    save_patch(patch, tmp_path / "half", dtype)
    save_patch(patch, tmp_path / "full")
    model = toy()
    AppliedPatch(model, load_patch(tmp_path / "half"))
    step = torch.finfo(dtype).eps
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter[~mask[name]], before[name][~mask[name]])
        torch.testing.assert_close(parameter, erased.get_parameter(name), rtol=step, atol=1e-7)
    values = sum(v.numel() for v in patch.values.values())
    assert (tmp_path / "full").stat().st_size - (tmp_path / "half").stat().st_size == pytest.approx(2 * values, abs=64)


def test_a_patch_goes_onto_a_model_of_half_precision() -> None:
    _, _, patch, mask = trained()
    model = toy().to(torch.bfloat16)
    before = snapshot(model)
    applied = AppliedPatch(model, patch)
    for name, chosen in mask.items():
        parameter = model.get_parameter(name)
        assert torch.equal(parameter[~chosen], before[name][~chosen])
        if chosen.any():
            assert torch.equal(parameter[chosen], patch.values[name].to(torch.bfloat16))
    applied.undo()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("other", [nn.Linear(24, 5), nn.Sequential(nn.Conv2d(3, 8, 5))])
def test_a_patch_for_another_model_is_refused(other: nn.Module) -> None:
    _, _, patch, _ = trained()
    before = snapshot(other)
    with pytest.raises(ValueError, match=r"the patch is for another model: it changes 0\.weight \(8, 3, 3, 3\)"):
        AppliedPatch(other, patch)
    assert same(other, before)


def write_foreign(kind: str, path: Path) -> None:
    """A file that is no patch."""
    _, _, patch, mask = trained()
    save_patch(patch, path)
    if kind == "a mask":
        save_mask(mask, path, {})
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    elif kind == "text":
        path.write_text("concept: dog\n" * 20)
    elif kind == "weights":
        save_file({"values.0.weight": torch.zeros(3)}, path)
    elif kind == "nan inside":
        patch.values["0.weight"][3] = math.nan
        save_patch(patch, path)
    elif kind == "too few values":
        patch.values["0.weight"] = patch.values["0.weight"][:-1]
        save_patch(patch, path)
    else:
        path.unlink()


@pytest.mark.parametrize("kind", ["a mask", "truncated", "text", "weights", "nan inside", "too few values", "missing"])
def test_a_foreign_file_is_refused(kind: str, tmp_path: Path) -> None:
    write_foreign(kind, tmp_path / "file")
    with pytest.raises(ValueError, match="is not an erasure patch"):
        load_patch(tmp_path / "file")


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_damaged_header_is_refused_or_does_no_harm(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Any byte of the header changed: a ValueError, or a patch whose positions are inside the shapes it names."""
    path = tmp_path_factory.getbasetemp() / "damaged-patch"
    model = nn.Linear(3, 4, bias=False)
    save_patch(patch_of(SalientWeights(model, {"weight": torch.ones(4, 3, dtype=torch.bool)}), model, {}), path)
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 51))
    content[place] = data.draw(st.one_of(st.sampled_from(list(b'0123456789"[]{},:eE.-')), st.integers(0, 255)))
    path.write_bytes(content)
    try:
        loaded = load_patch(path)
    except ValueError as error:
        loaded, message = None, str(error)
    if loaded is None:
        assert "is not an erasure patch" in message
    else:
        for name, positions in loaded.positions.items():
            assert positions.max() < math.prod(loaded.shapes[name])


def test_the_audit_of_a_training_run_finds_nothing_outside_the_mask() -> None:
    erased, before, _, mask = trained()
    num_salient = sum(int(chosen.sum()) for chosen in mask.values())
    proof = audit(before, snapshot(erased), mask)
    assert proof == Audit(0, 1.0, num_salient, sum(p.numel() for p in erased.parameters()))


@pytest.mark.parametrize("name", ["0.weight", "2.bias", "4.weight"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_weight_outside_the_mask_changed_by_one_ulp_is_found(dtype: torch.dtype, name: str) -> None:
    erased, before, _, mask = trained(channels_last=True)
    before = {key: values.to(dtype) for key, values in before.items()}
    after = {key: values.to(dtype) for key, values in snapshot(erased).items()}
    assert audit(before, after, mask).changed_outside_mask == 0
    place = tuple((~mask[name]).nonzero()[-1].tolist())
    after[name][place] = torch.nextafter(after[name][place], torch.tensor(9.0, dtype=dtype))
    assert audit(before, after, mask).changed_outside_mask == 1


def test_bits_are_compared_and_not_numbers() -> None:
    """0.0 and -0.0 are equal numbers, nan is not equal to itself."""
    base = {"w": torch.tensor([0.0, math.nan])}
    nothing = {"w": torch.zeros(2, dtype=torch.bool)}
    assert audit(base, {"w": torch.tensor([0.0, math.nan])}, nothing).changed_outside_mask == 0
    assert audit(base, {"w": torch.tensor([-0.0, math.nan])}, nothing).changed_outside_mask == 1


def test_a_tensor_that_the_mask_does_not_name_is_outside_it() -> None:
    base = {"a": torch.zeros(3), "b": torch.zeros(2)}
    erased = {"a": torch.tensor([1.0, 0, 0]), "b": torch.ones(2)}
    mask = {"a": torch.tensor([True, True, False])}
    assert audit(base, erased, mask) == Audit(2, 0.5, 2, 5)


@pytest.mark.parametrize("change", ["added", "removed", "retyped", "reshaped"])
def test_a_tensor_added_removed_retyped_or_reshaped_is_refused(change: str) -> None:
    base = {"a": torch.zeros(2, 3), "b": torch.zeros(2)}
    erased = {
        "added": base | {"c": torch.zeros(1)},
        "removed": {"a": base["a"]},
        "retyped": base | {"b": base["b"].half()},
        "reshaped": base | {"a": torch.zeros(3, 2)},
    }[change]
    name = {"added": "c", "reshaped": "a"}.get(change, "b")
    with pytest.raises(ValueError, match=rf"\b{name}\b"):
        audit(base, erased, {})


def test_the_exported_folder_loads_as_the_same_model(tiny_family: StableDiffusion, tmp_path: Path) -> None:
    """Bit for bit, as a diffusers folder of safetensors, in place of what was there, with nothing left beside it."""
    with torch.no_grad():
        tiny_family.denoiser.conv_out.bias.add_(0.25)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").touch()
    save_model(tiny_family, tmp_path / "model")
    loaded = load(str(tmp_path / "model"))
    assert audit(snapshot(tiny_family.denoiser), snapshot(loaded.denoiser), {}).changed_outside_mask == 0
    seen = {"num_inference_steps": 2, "guidance_scale": 2.0, "batch_size": 2}
    pictures = [family.decode_latents(family.generate(["a dog"], [3], **seen)) for family in (tiny_family, loaded)]
    torch.testing.assert_close(*pictures, rtol=1e-4, atol=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert not (tmp_path / "model" / "old").exists()
    assert not list((tmp_path / "model").rglob("*.bin"))


def test_an_export_that_fails_leaves_what_was_there(tiny_family: StableDiffusion, tmp_path: Path) -> None:
    class Full(StableDiffusion):
        def save(self, folder: object) -> None:
            super().save(folder)
            raise OSError("no space left on device")

    save_model(tiny_family, tmp_path / "model")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(OSError, match="no space"):
        save_model(Full(tiny_family.pipeline), tmp_path / "model")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
