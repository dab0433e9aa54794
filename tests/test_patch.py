"""The patch (bit for bit at 0 and 1, linear in between, undone exactly) and the audit of what moved."""

import math
from pathlib import Path

import architectures as full
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from erase.applied_patch import AppliedPatch
from erase.export import WeightDifference, compare_weights, patch_bytes, save_model
from erase.patch import Patch, load_patch, patch_of, patch_provenance, rebased, save_patch, with_originals
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_computed_size_is_the_file_but_for_its_header(dtype: torch.dtype, tmp_path: Path) -> None:
    patch = random_patch(1)
    save_patch(patch, tmp_path / "patch", dtype)
    header = 8 + int.from_bytes((tmp_path / "patch").read_bytes()[:8], "little")
    num_values = sum(len(values) for values in patch.values.values())
    assert (tmp_path / "patch").stat().st_size == header + patch_bytes(patch.shapes, num_values, dtype.itemsize)


def test_at_the_size_of_sd_1_4_mask_and_patch_are_small() -> None:
    """859.5 M weights: a mask of a bit each, and a tenth of the values in float16; the 686 names of a header are 0.2 MB."""
    shapes = {name: tuple(p.shape) for name, p in full.unet(full.UNET_1).named_parameters()}
    num_weights = sum(math.prod(shape) for shape in shapes.values())
    assert (len(shapes), num_weights) == (686, 859_520_964)
    assert patch_bytes(shapes, 0, 0) + 2e5 == pytest.approx(859_520_964 / 8, rel=0.01) and patch_bytes(shapes, 0, 0) < 0.12e9
    assert patch_bytes(shapes, num_weights // 10, 2) + 2e5 < 0.30e9


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


def random_patch(seed: int, density: float = 0.4, model: nn.Module | None = None) -> Patch:
    """New values at random positions of `toy`; some patches leave a tensor out."""
    generator = torch.Generator().manual_seed(seed)
    positions, values, shapes = {}, {}, {}
    for k, (name, p) in enumerate((model or toy()).named_parameters()):
        chosen = (torch.rand(p.numel(), generator=generator) < density).nonzero()[:, 0]
        if len(chosen) and (k + seed) % 5:
            positions[name], shapes[name] = chosen, tuple(p.shape)
            values[name] = torch.randn(len(chosen), generator=generator)
    return Patch(values, positions, shapes, {"concept": str(seed)})


def stacked_by_hand(before: dict[str, Tensor], patches: list[Patch], strengths: list[float]) -> dict[str, Tensor]:
    """base + sum of strength * (value - base), weight by weight in Python's floats."""
    expected = {name: values.double().reshape(-1).clone() for name, values in before.items()}
    for patch, strength in zip(patches, strengths, strict=True):
        for name, positions in patch.positions.items():
            base = before[name].double().reshape(-1)
            for position, value in zip(positions.tolist(), patch.values[name].tolist(), strict=True):
                expected[name][position] += strength * (value - float(base[position]))
    return {name: values.view(before[name].shape) for name, values in expected.items()}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("strengths", [[1.0, 1.0], [0.3, 1.5, 0.8], [0.0, 0.6, 1.0]])
def test_a_stack_is_the_base_plus_the_sum_of_the_differences(strengths: list[float], channels_last: bool) -> None:
    patches = [random_patch(seed) for seed in range(1, len(strengths) + 1)]
    model = toy(channels_last)
    before = snapshot(model)
    AppliedPatch(model, patches, strengths)
    for name, expected in stacked_by_hand(before, patches, strengths).items():
        assert torch.equal(model.get_parameter(name).detach(), expected.float()), name


def test_where_one_patch_of_strength_1_is_alone_its_values_stand_bit_for_bit() -> None:
    first, second = random_patch(1), random_patch(2)
    first.values["0.weight"][:3] = torch.tensor([-0.0, 1e-42, 3.4e38])  # what a sum would not give back
    model = toy()
    before = snapshot(model)
    AppliedPatch(model, [first, second], [1.0, 0.5])
    num_alone = num_untouched = 0
    for name, parameter in model.named_parameters():
        both = [set(patch.positions.get(name, torch.tensor([])).tolist()) for patch in (first, second)]
        after = parameter.detach().reshape(-1).view(torch.int32)
        for position, value in zip(first.positions.get(name, []), first.values.get(name, []), strict=True):
            if int(position) not in both[1]:
                assert after[position] == value.view(torch.int32)
                num_alone += 1
        untouched = [k for k in range(parameter.numel()) if k not in both[0] | both[1]]
        assert torch.equal(after[untouched], before[name].reshape(-1).view(torch.int32)[untouched])
        num_untouched += len(untouched)
    assert num_alone > 20 and num_untouched > 20


def test_a_patch_of_strength_0_is_as_if_it_were_not_there() -> None:
    patches = [random_patch(seed) for seed in (1, 2, 3)]
    for strength in (0.0, 0.35, 1.0, 1.5):
        alone, stacked = toy(), toy()
        AppliedPatch(alone, patches[1], strength)
        AppliedPatch(stacked, patches, [0.0, strength, 0.0])
        assert same(stacked, snapshot(alone)), strength


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 1.5), st.floats(0, 1.5))
@example(0.1, 0.1)  # found once: added to the base one by one, the last bit of the sum depends on the order
def test_two_patches_give_the_same_weights_in_either_order(a: float, b: float) -> None:
    first, second = random_patch(1), random_patch(2)
    one, other = toy(), toy()
    AppliedPatch(one, [first, second], [a, b])
    AppliedPatch(other, [second, first], [b, a])
    assert same(other, snapshot(one))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_stack_is_dialled_live_and_undone_bit_for_bit(dtype: torch.dtype, channels_last: bool) -> None:
    """One of three patches moved at a time; the same weights as setting all at once; nothing left after undo."""
    patches = [random_patch(seed) for seed in (1, 2, 3)]
    model = toy(channels_last).to(dtype)
    before = snapshot(model)
    applied = AppliedPatch(model, patches, 0.0)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    for which, strength in [(0, 1.0), (2, 0.4), (1, 1.5), (0, 0.2), (2, 1.0)]:
        applied.dial(strength, which)
    assert applied.strengths == (0.2, 1.5, 1.0)
    at_once = toy(channels_last).to(dtype)
    AppliedPatch(at_once, patches, [0.2, 1.5, 1.0])
    assert all(torch.equal(p, at_once.get_parameter(name)) for name, p in model.named_parameters())
    assert not all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    applied.undo()
    integers = {4: torch.int32, 2: torch.int16}[dtype.itemsize]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.detach().contiguous().view(integers), before[name].contiguous().view(integers))
        assert parameter.stride() == before[name].stride()


def test_a_model_that_changes_its_memory_format_is_dialled_all_the_same() -> None:
    patches = [random_patch(1), random_patch(2)]
    model, other = toy(), toy(channels_last=True)
    before = snapshot(model)
    applied = AppliedPatch(model, patches, [0.5, 1.0])
    model.to(memory_format=torch.channels_last)
    applied.dial([1.0, 0.25])
    AppliedPatch(other, patches, [1.0, 0.25])
    assert same(model, snapshot(other))
    applied.undo()
    assert same(model, before)


@pytest.mark.parametrize("strengths", [[1.0], [1.0, 1.0, 1.0], []])
def test_there_is_one_strength_for_each_patch(strengths: list[float]) -> None:
    model = toy()
    before = snapshot(model)
    with pytest.raises(ValueError, match=rf"there are {len(strengths)} strengths for 2 patches"):
        AppliedPatch(model, [random_patch(1), random_patch(2)], strengths)
    assert same(model, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_undo_patch_on_disk_gives_the_base_back(dtype: torch.dtype, tmp_path: Path) -> None:
    model = toy(channels_last=True).to(dtype)
    before = snapshot(model)
    applied = AppliedPatch(model, [random_patch(1), random_patch(2)], [0.7, 1.0])
    save_patch(applied.undo_patch({"undo": "x"}), tmp_path / "undo", None)
    patched = snapshot(model)
    fresh = toy().to(dtype)
    with torch.no_grad():
        for name, parameter in fresh.named_parameters():
            parameter.copy_(patched[name])
    AppliedPatch(fresh, load_patch(tmp_path / "undo"))
    assert all(torch.equal(p, before[name]) for name, p in fresh.named_parameters())


def test_originals_are_kept_in_the_file_and_the_older_format_still_loads(tmp_path: Path) -> None:
    _, before, patch, _ = trained()
    save_patch(patch, tmp_path / "one")
    save_patch(with_originals(patch, toy()), tmp_path / "two")
    one, two = load_patch(tmp_path / "one"), load_patch(tmp_path / "two")
    assert one.originals is None and two.originals is not None
    for name, positions in patch.positions.items():
        assert torch.equal(two.originals[name], before[name].reshape(-1)[positions])
        assert torch.equal(two.values[name], one.values[name])
    assert one.provenance == two.provenance == patch_provenance(tmp_path / "two") == PROVENANCE


def other_base(share: float) -> nn.Module:
    """A fine-tune of `toy`: that share of its weights is another."""
    model, generator = toy(), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            moved = torch.rand(parameter.shape, generator=generator) < share
            parameter.add_(moved * torch.randn(parameter.shape, generator=generator))
    return model


def test_on_another_base_the_differences_are_added_and_the_report_says_how_far_it_is() -> None:
    patch = with_originals(random_patch(1), toy())
    model = other_base(0.5)
    here = snapshot(model)
    moved, report = rebased(patch, model)
    AppliedPatch(model, moved)
    num_different = apart = change = 0.0
    for name, positions in patch.positions.items():
        old, new = toy().get_parameter(name).detach().reshape(-1)[positions], here[name].reshape(-1)[positions]
        expected = new.double() + patch.values[name].double() - old.double()
        torch.testing.assert_close(
            model.get_parameter(name).detach().reshape(-1)[positions].double(), expected, rtol=0, atol=1e-6
        )
        num_different += int((old != new).sum())
        apart += float((old.double() - new).square().sum())
        change += float((old.double() - patch.values[name]).square().sum())
    num_weights = sum(len(positions) for positions in patch.positions.values())
    assert report["num_weights"] == num_weights and report["different"] == num_different / num_weights
    assert 0.4 < report["different"] < 0.6
    assert report["distance"] == pytest.approx(math.sqrt(apart / change))


def test_on_its_own_base_a_moved_patch_is_the_patch_bit_for_bit() -> None:
    moved, report = rebased(with_originals(random_patch(1), toy()), toy())
    assert all(torch.equal(moved.values[name], values) for name, values in random_patch(1).values.items())
    assert report["different"] == 0 and report["distance"] == 0


def test_without_the_originals_a_patch_goes_onto_no_other_base() -> None:
    with pytest.raises(ValueError, match=r"does not contain the values of its own base.*--patch-base.*--with-originals"):
        rebased(random_patch(1), other_base(0.5))


def test_values_too_large_for_the_dtype_are_refused(tmp_path: Path) -> None:
    patch = random_patch(1)
    patch.values["0.weight"][0] = 1e6
    with pytest.raises(ValueError, match=r"0\.weight has values too large for float16"):
        save_patch(patch, tmp_path / "file", torch.float16)
    assert list(tmp_path.iterdir()) == []


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
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "a LoRA":
        save_file({"lora_unet_down_blocks_0.lora_down.weight": torch.zeros(3)}, path)
    elif kind == "a model":
        save_file({"model.diffusion_model.out.2.bias": torch.zeros(3)}, path)
    elif kind == "nan inside":
        patch.values["0.weight"][3] = math.nan
        save_patch(patch, path)
    elif kind == "too few values":
        patch.values["0.weight"] = patch.values["0.weight"][:-1]
        save_patch(patch, path)
    else:
        path.unlink()


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("a mask", "it is a run's mask; give the patch.safetensors"),
        ("truncated", ""),
        ("text", ""),
        ("weights", "its header says neither"),
        ("empty", "it is empty"),
        ("a LoRA", "it is a LoRA"),
        ("a model", "it is a whole model"),
        ("nan inside", r"values of 0\.weight .* not finite"),
        ("too few values", r"values of 0\.weight do not fit its mask"),
        ("missing", "No such file"),
    ],
)
def test_a_foreign_file_is_refused(kind: str, why: str, tmp_path: Path) -> None:
    write_foreign(kind, tmp_path / "file")
    with pytest.raises(ValueError, match=f"is not an erasure patch: .*{why}"):
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
    difference = compare_weights(before, snapshot(erased), mask)
    assert difference == WeightDifference(0, 1.0, num_salient, sum(p.numel() for p in erased.parameters()))


@pytest.mark.parametrize("name", ["0.weight", "2.bias", "4.weight"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_weight_outside_the_mask_changed_by_one_ulp_is_found(dtype: torch.dtype, name: str) -> None:
    erased, before, _, mask = trained(channels_last=True)
    before = {key: values.to(dtype) for key, values in before.items()}
    after = {key: values.to(dtype) for key, values in snapshot(erased).items()}
    assert compare_weights(before, after, mask).changed_outside_mask == 0
    place = tuple((~mask[name]).nonzero()[-1].tolist())
    after[name][place] = torch.nextafter(after[name][place], torch.tensor(9.0, dtype=dtype))
    assert compare_weights(before, after, mask).changed_outside_mask == 1


def test_bits_are_compared_and_not_numbers() -> None:
    """0.0 and -0.0 are equal numbers, nan is not equal to itself."""
    base = {"w": torch.tensor([0.0, math.nan])}
    nothing = {"w": torch.zeros(2, dtype=torch.bool)}
    assert compare_weights(base, {"w": torch.tensor([0.0, math.nan])}, nothing).changed_outside_mask == 0
    assert compare_weights(base, {"w": torch.tensor([-0.0, math.nan])}, nothing).changed_outside_mask == 1


def test_a_tensor_that_the_mask_does_not_name_is_outside_it() -> None:
    base = {"a": torch.zeros(3), "b": torch.zeros(2)}
    erased = {"a": torch.tensor([1.0, 0, 0]), "b": torch.ones(2)}
    mask = {"a": torch.tensor([True, True, False])}
    assert compare_weights(base, erased, mask) == WeightDifference(2, 0.5, 2, 5)


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
        compare_weights(base, erased, {})


def test_the_exported_folder_loads_as_the_same_model(tiny_family: StableDiffusion, tmp_path: Path) -> None:
    """Bit for bit, as a diffusers folder of safetensors, in place of what was there, with nothing left beside it."""
    with torch.no_grad():
        tiny_family.denoiser.conv_out.bias.add_(0.25)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").touch()
    save_model(tiny_family, tmp_path / "model")
    loaded = load(str(tmp_path / "model"))
    assert compare_weights(snapshot(tiny_family.denoiser), snapshot(loaded.denoiser), {}).changed_outside_mask == 0
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
