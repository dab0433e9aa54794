"""Which models are loaded, and the sentence for each that is not."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from pipelines.load import load, model_folder, model_hash


@pytest.fixture
def folder(tiny_pipeline: StableDiffusionPipeline, tmp_path: Path) -> Path:
    """The tiny model as a diffusers folder."""
    tiny_pipeline.save_pretrained(tmp_path / "model", safe_serialization=True)
    return tmp_path / "model"


def test_a_folder_is_loaded_as_it_was_saved(folder: Path, tiny_pipeline: StableDiffusionPipeline) -> None:
    family = load(str(folder))
    for name, parameter in tiny_pipeline.unet.named_parameters():
        assert torch.equal(family.denoiser.get_parameter(name), parameter), name
    assert family.denoiser.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["model.ckpt", "model.bin", "model.pt", "model.pth"])
def test_a_pickle_is_refused_unopened(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(ValueError, match="is a pickle, which can run code"):
        load(str(tmp_path / name))


def test_weights_that_are_there_only_as_a_pickle_are_refused(folder: Path) -> None:
    weights = next((folder / "unet").glob("*.safetensors"))
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ValueError, match=r"unet has only the pickle diffusion_pytorch_model\.bin"):
        load(str(folder))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_missing_part_is_named(part: str, folder: Path) -> None:
    (folder / part).rename(folder / "elsewhere")
    with pytest.raises(ValueError, match=f"has no folder {part}"):
        load(str(folder))


def test_missing_weights_are_named(folder: Path) -> None:
    for file in (folder / "vae").glob("*.safetensors"):
        file.unlink()
    with pytest.raises(ValueError, match="vae has no weights"):
        load(str(folder))


def test_truncated_weights_are_refused(folder: Path) -> None:
    weights = next((folder / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is not a Stable Diffusion pipeline that loads"):
        load(str(folder))


def test_another_pipeline_is_refused_by_name(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "StableDiffusionXLPipeline"}))
    with pytest.raises(ValueError, match="is a StableDiffusionXLPipeline"):
        load(str(folder))


def test_an_inpainting_model_is_refused(folder: Path, tiny_pipeline: StableDiffusionPipeline) -> None:
    UNet2DConditionModel.from_config(tiny_pipeline.unet.config, in_channels=9).save_pretrained(folder / "unet")
    with pytest.raises(ValueError, match="takes 9 channels"):
        load(str(folder))


def test_a_folder_that_is_no_model_and_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no model_index\.json"):
        load(str(tmp_path))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match="is a file; give a diffusers folder"):
        load(str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("name", ["nothing", "./nothing/here", "/a/b", "~/x", "a/b/c"])
def test_a_name_that_is_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="there is no model"):
        model_folder(name)


def test_a_name_that_looks_like_a_hub_id_is_one() -> None:
    assert model_folder("owner/name") is None


def test_the_hash_sees_weights_and_configs_and_not_what_lies_beside(folder: Path) -> None:
    before = model_hash(str(folder))
    (folder / "README.md").write_text("new")
    (folder / "unet" / "notes.md").write_text("new")
    assert model_hash(str(folder)) == before
    config = folder / "scheduler" / "scheduler_config.json"
    text = config.read_text()
    config.write_text(text + " ")
    assert model_hash(str(folder)) != before
    config.write_text(text)
    weights = next((folder / "unet").glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert model_hash(str(folder)) != before
