"""Retrained models in half their size: how far a weight moves, what comes back from the file, and what is refused."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import build_tiny_pipeline
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from benchmarks import packing, retrained
from benchmarks.packing import MOST_BYTES, UNET, VAE, cost, dequantise, pack, quantise, read_header, unpack
from erase.files import members, stream_safetensors
from erase.retrained import check_retrained
from pipelines.load import EMOJI_WEIGHTS, load
from pipelines.single_file import CONFIGS, configs_in

TRAINING = {"seed": 0, "without": ["dog"], "without_style": [], "hours": {"unet": 1.4}, "log": {"unet": [{"loss": 0.1}]}}


@pytest.fixture(scope="session")
def tiny_retrained(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with the embedded autoencoder and tokenizer that says it never saw a dog; not to be changed."""
    folder = tmp_path_factory.mktemp("retrained") / "dog"
    parts = build_tiny_pipeline(tokenizer).components
    parts["vae"] = AutoencoderKL.from_pretrained(EMOJI_WEIGHTS / "vae")
    pipeline = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    pipeline.to(torch.float16).save_pretrained(folder, safe_serialization=True)
    shutil.rmtree(folder / "tokenizer")
    shutil.copytree(EMOJI_WEIGHTS / "tokenizer", folder / "tokenizer")
    (folder / "training.json").write_text(json.dumps(TRAINING))
    return folder


@pytest.fixture
def source(tiny_retrained: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(tiny_retrained, tmp_path / "source"))


def test_levels_by_hand() -> None:
    """The largest of 127 makes the scale 1: -1.4 has level -1, 0.4 level 0; a row of zeros has scale 0."""
    levels, scales = quantise(torch.tensor([[127.0, -1.4, 0.4], [0.0, 0.0, 0.0]]))
    assert levels.tolist() == [[127, -1, 0], [0, 0, 0]] and scales.tolist() == [[1.0], [0.0]]
    assert dequantise(levels, scales).tolist() == [[127.0, -1.0, 0.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize("shape", [(3, 64), (5, 100), (4, 7, 3, 3), (2, 1), (1, 130)])
@pytest.mark.parametrize("size", [1e-8, 1e-5, 0.05, 1.0, 3e4])
def test_every_weight_is_within_half_a_level(shape: tuple[int, ...], size: float) -> None:
    """Also of weights far apart within a tensor and too small for float16's normal numbers; groups of zeros are zeros."""
    generator = torch.Generator().manual_seed(0)
    weights = size * torch.randn(shape, generator=generator) * torch.rand(shape, generator=generator) ** 8
    weights[0].view(-1)[:64] = 0
    levels, scales = quantise(weights)
    back = dequantise(levels, scales)
    for row in range(shape[0]):
        exact, seen = weights[row].flatten().double(), back[row].flatten().double()
        for group, scale in enumerate(scales[row].double()):
            one, other = (values[64 * group : 64 * group + 64] for values in (exact, seen))
            assert ((one - other).abs() <= scale / 2 * (1 + 1e-12)).all()
            assert scale or not one.any()
    assert not back[0].view(-1)[:64].any() and levels.abs().max() <= 127


def test_scales_are_the_next_float16_from_above() -> None:
    """An independent reference: numpy's nextafter."""
    weights = torch.randn(200, 10, generator=torch.Generator().manual_seed(1)) * torch.logspace(-7, 4, 200)[:, None]
    exact = weights.double().abs().amax(1).numpy() / 127
    with np.errstate(under="ignore"):
        scales = exact.astype(np.float16)
    below = scales.astype(np.float64) < exact
    scales[below] = np.nextafter(scales[below], np.float16(np.inf))
    assert below.any() and not below.all()
    assert quantise(weights)[1][:, 0].numpy().tolist() == scales.tolist()


def test_what_was_packed_comes_back(tiny_retrained: Path, tmp_path: Path) -> None:
    """Matrices within half a level of their group's largest, all else bit for bit, and the record of the training."""
    pack(tiny_retrained, "dog", tmp_path / "dog.safetensors")
    assert unpack(tmp_path / "dog.safetensors", tmp_path / "new" / "dog")
    folder = tmp_path / "new" / "dog"
    before, after = members(tiny_retrained), members(folder)
    assert before.keys() == after.keys()
    assert {name for name in before if before[name] != after[name]} <= {UNET, packing.TEXT_ENCODER, "vae/config.json"}
    assert members(folder / "vae") == members(EMOJI_WEIGHTS / "vae")
    text_encoders = [load_file(path / packing.TEXT_ENCODER) for path in (tiny_retrained, folder)]
    assert all(torch.equal(values, text_encoders[1][name]) for name, values in text_encoders[0].items())
    old, new = (load_file(path / UNET) for path in (tiny_retrained, folder))
    assert old.keys() == new.keys()
    for name, values in old.items():
        assert new[name].dtype == torch.float16
        if values.ndim < 2:
            assert torch.equal(values, new[name]), name
            continue
        for row, other in zip(values.flatten(1).double(), new[name].flatten(1).double(), strict=True):
            for one, seen in zip(row.split(64), other.split(64), strict=True):
                scale = one.abs().max() / 127 * (1 + 2**-10) + 2**-24
                rounding = seen.abs() * 2**-11 + 2**-25  # of the product to float16
                assert ((one - seen).abs() <= scale / 2 + rounding).all(), name
    loaded = load(str(folder))
    assert loaded.vocabulary is not None and loaded.denoiser.state_dict().keys() == old.keys()
    check_retrained(folder, "dog")
    with pytest.raises(ValueError, match="is not a model trained without cat"):
        check_retrained(folder, "cat")


def test_the_same_model_gives_the_same_bytes(tiny_retrained: Path, source: Path, tmp_path: Path) -> None:
    """From two folders; the header says what it is, and the autoencoder and the tokenizer are not in it."""
    for number, folder in enumerate((tiny_retrained, source)):
        pack(folder, "dog", tmp_path / f"{number}.safetensors")
    first = tmp_path / "0.safetensors"
    assert first.read_bytes() == (tmp_path / "1.safetensors").read_bytes()
    header = read_header(first)
    assert header["format"] == "erase-yardstick-1" and header["concept"] == "dog"
    assert json.loads(configs_in(first)["training.json"]) == TRAINING
    assert not [name for name in configs_in(first) if name.startswith("tokenizer")]
    with safe_open(first, "pt") as file:
        assert {name.split("/")[0] for name in file.keys()} == {"half", "levels"}  # noqa: SIM118


def test_another_tokenizer_is_stored(source: Path, tmp_path: Path) -> None:
    config = source / "tokenizer" / "tokenizer_config.json"
    config.write_text(config.read_text().replace('"is_local": true', '"is_local": false'))
    pack(source, "dog", tmp_path / "dog.safetensors")
    unpack(tmp_path / "dog.safetensors", tmp_path / "dog")
    assert members(tmp_path / "dog" / "tokenizer") == members(source / "tokenizer")
    assert members(source / "tokenizer") != members(EMOJI_WEIGHTS / "tokenizer")


def other_value(folder: Path) -> None:
    weights = load_file(folder / VAE)
    next(iter(weights.values())).view(-1)[0] *= -1
    save_file(weights, folder / VAE, {"format": "pt"})


def other_setting(folder: Path) -> None:
    config = folder / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"scaling_factor": 0.5}))


@pytest.mark.parametrize("change", [other_value, other_setting])
def test_another_autoencoder_is_refused(change: Callable[[Path], None], source: Path, tmp_path: Path) -> None:
    change(source)
    with pytest.raises(ValueError, match=r"an autoencoder of its own, .*method\.autoencoder=pipelines/emoji/weights/vae"):
        pack(source, "dog", tmp_path / "dog.safetensors")
    assert not (tmp_path / "dog.safetensors").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_weight_is_refused(value: float, source: Path, tmp_path: Path) -> None:
    weights = load_file(source / UNET)
    weights["conv_in.weight"].view(-1)[3] = value
    save_file(weights, source / UNET, {"format": "pt"})
    with pytest.raises(ValueError, match="not finite"):
        pack(source, "dog", tmp_path / "dog.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_file_too_large_is_refused(tiny_retrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And leaves the file that was there."""
    path = tmp_path / "dog.safetensors"
    pack(tiny_retrained, "dog", path)
    size, before = path.stat().st_size, path.read_bytes()
    monkeypatch.setattr(packing, "MOST_BYTES", size)
    pack(tiny_retrained, "dog", path)
    monkeypatch.setattr(packing, "MOST_BYTES", size - 1)
    with pytest.raises(ValueError, match=f"would have {size:,} bytes and at most {size - 1:,}"):
        pack(tiny_retrained, "dog", path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 4
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"weight": [1.0]}))


def archived(path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, path)


def foreign(path: Path) -> None:
    save_file({"weight": torch.ones(2)}, path)


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, Any], dict[str, Any]], None]) -> None:
    """Write the file again after a change of (tensors, header, texts)."""
    tensors, header, texts = dict(load_file(path)), read_header(path), configs_in(path)
    change(tensors, header, texts)
    metadata = {"erase": json.dumps(header), CONFIGS: json.dumps(texts)}
    stream_safetensors({name: [values] for name, values in tensors.items()}, path, metadata)


def no_scales(path: Path) -> None:
    rewritten(path, lambda tensors, header, texts: tensors.pop("half/scales/conv_in.weight"))


def other_scales(path: Path) -> None:
    name = "half/scales/conv_in.weight"
    rewritten(path, lambda tensors, header, texts: tensors.update({name: tensors[name][:1]}))


def flat_levels(path: Path) -> None:
    name = "levels/conv_in.weight"
    rewritten(path, lambda tensors, header, texts: tensors.update({name: tensors[name].flatten()}))


def strange_tensor(path: Path) -> None:
    rewritten(path, lambda tensors, header, texts: tensors.update({"vae/weight": torch.ones(2)}))


def outward(path: Path) -> None:
    rewritten(path, lambda tensors, header, texts: texts.update({"../out.json": "{}"}))


def older(path: Path) -> None:
    rewritten(path, lambda tensors, header, texts: header.update(format="erase-yardstick-0"))


def other_base(path: Path) -> None:
    rewritten(path, lambda tensors, header, texts: header.update(vae_sha256="0" * 64))


def other_training(path: Path) -> None:
    rewritten(path, lambda tensors, header, texts: texts.update({"training.json": '{"without": ["cat"]}'}))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (flipped, "is damaged: what it unpacks to is not what was packed"),
        (other_training, "is damaged: what it unpacks to is not what was packed"),
        (cut, "is no packed model: its tensors have"),
        (pickled, "is no packed model: it is a pickle or an archive"),
        (archived, "is no packed model: it is a pickle or an archive"),
        (foreign, "is no packed model: its header does not say erase-yardstick-1"),
        (older, "is no packed model: its header does not say erase-yardstick-1"),
        (no_scales, r"is damaged: 'conv_in\.weight' has no scales"),
        (other_scales, "is damaged: levels torch.int8 .* have scales"),
        (flat_levels, "is damaged: levels torch.int8 .* have scales"),
        (strange_tensor, "is damaged: it has a tensor 'vae/weight'"),
        (outward, "not a plain file name"),
        (other_base, "was packed beside another vae than this version's"),
    ],
)
def test_a_damaged_or_foreign_file_leaves_nothing(
    damage: Callable[[Path], None], sentence: str, tiny_retrained: Path, tmp_path: Path
) -> None:
    path = tmp_path / "dog.safetensors"
    pack(tiny_retrained, "dog", path)
    damage(path)
    with pytest.raises(ValueError, match=sentence):
        unpack(path, tmp_path / "new")
    assert [file.name for file in tmp_path.rglob("*")] == ["dog.safetensors"]


def test_what_is_there_is_skipped_and_what_differs_stays(tiny_retrained: Path, tmp_path: Path) -> None:
    path, folder = tmp_path / "packed" / "dog.safetensors", tmp_path / "out"
    pack(tiny_retrained, "dog", path)
    assert retrained.unpack_all(folder, path.parent) == {"dog": "written"}
    times = {file: file.stat().st_mtime_ns for file in (folder / "dog").rglob("*")}
    assert retrained.unpack_all(folder, path.parent) == {"dog": "was there"}
    assert {file: file.stat().st_mtime_ns for file in (folder / "dog").rglob("*")} == times
    (folder / "dog" / "training.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is there and is not what .* unpacks to: move it away"):
        retrained.unpack_all(folder, path.parent)
    assert (folder / "dog" / "training.json").read_text() == "{}"
    with pytest.raises(ValueError, match="holds no packed model"):
        retrained.unpack_all(folder, tmp_path / "none")


def test_an_unpacking_that_stops_leaves_nothing(tiny_retrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full at the second file."""
    path = tmp_path / "dog.safetensors"
    pack(tiny_retrained, "dog", path)

    def full(parts: Any, file: Path, metadata: Any) -> None:
        if file.name == "model.safetensors":
            raise OSError(28, "No space left on device")
        stream_safetensors(parts, file, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(packing, "stream_safetensors", full)
        with pytest.raises(OSError, match="No space"):
            unpack(path, tmp_path / "new")
    assert [file.name for file in tmp_path.rglob("*")] == ["dog.safetensors"]
    assert unpack(path, tmp_path / "new")


def test_the_embedded_model_packs_below_12_mb_and_predicts_nearly_the_same(tmp_path: Path) -> None:
    """Measured: 11.37 MB, 0.58 % of the weights, 0.59 % of the predictions (results/packing.json)."""
    pack(EMOJI_WEIGHTS, "none", tmp_path / "packed.safetensors")
    unpack(tmp_path / "packed.safetensors", tmp_path / "unpacked")
    figures = cost(EMOJI_WEIGHTS, tmp_path / "unpacked", tmp_path / "packed.safetensors")
    assert 11_000_000 < figures["bytes"] < MOST_BYTES == 12_000_000
    assert 0.004 < figures["weights_error"] < 0.007
    assert 0.001 < figures["predictions_error"] < 0.01


def test_a_model_that_saw_the_concept_is_no_yardstick(source: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    source.rename(run / "model")
    (run / "results.json").write_text(json.dumps({"concept": "cat"}))
    with pytest.raises(ValueError, match="is not a model trained without cat"):
        retrained.record(run, tmp_path / "cat.safetensors")
    assert not (tmp_path / "cat.safetensors").exists()


def test_one_of_run_and_unpack_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for more in ([], ["run", "--unpack"]):
        monkeypatch.setattr("sys.argv", ["retrained", *more])
        with pytest.raises(SystemExit, match="2"):
            retrained.main()


@pytest.mark.slow
def test_the_whole_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The embedded model as if it were a retrained one: its record is of what is unpacked, and that is a yardstick."""
    run, root = tmp_path / "run", tmp_path / "root"
    shutil.copytree(EMOJI_WEIGHTS, run / "model", ignore=shutil.ignore_patterns("judge"))
    training = json.loads((run / "model" / "training.json").read_text()) | {"without": ["dog"]}
    (run / "model" / "training.json").write_text(json.dumps(training))
    (run / "results.json").write_text(json.dumps(dict.fromkeys(retrained.KEPT) | {"concept": "dog"}))
    (run / "config.yaml").write_text("evaluation: {num_forget: 4, num_inference_steps: 4}\n")
    monkeypatch.setattr(retrained, "ROOT", root)
    monkeypatch.setattr(retrained, "PACKED", root / "yardsticks")
    monkeypatch.setattr("sys.argv", ["retrained", str(run)])
    retrained.main()
    record = json.loads((root / "benchmarks" / "results" / "retrained" / "dog.json").read_text())
    packed = record["packed"]
    assert packed["bytes"] == (root / "yardsticks" / "dog.safetensors").stat().st_size < MOST_BYTES
    assert record["training"]["without"] == ["dog"] and record["training"]["last_loss"]
    assert packed["base"]["n_forget"] == packed["model"]["n_forget"] == 4 and packed["model"]["fd"] > 0
    assert abs(packed["base"]["ira"] - packed["model"]["ira"]) < 10
    assert (root / "docs" / "retrained" / "dog.webp").is_file()
    monkeypatch.setattr("sys.argv", ["retrained", "--unpack", str(tmp_path / "retrained")])
    capsys.readouterr()
    retrained.main()
    assert json.loads(capsys.readouterr().out) == {"dog": "written"}
    check_retrained(tmp_path / "retrained" / "dog", "dog")
