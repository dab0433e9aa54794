"""Which models are loaded, and the sentence for each that is not."""

import copy
import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from huggingface_hub.utils import filter_repo_objects
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from erase.config import LoadConfig
from pipelines.load import EMOJI_WEIGHTS, device_of, load, made_from_emoji, model_hash, model_path
from pipelines.sdxl import StableDiffusionXL
from pipelines.single_file import write_single_file
from pipelines.stable_diffusion import StableDiffusion

ROOT = Path(__file__).parent.parent


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
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        load(str(folder))


def test_another_pipeline_is_refused_by_name(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "FluxPipeline"}))
    with pytest.raises(ValueError, match="is a FluxPipeline; this version erases from StableDiffusionPipeline and"):
        load(str(folder))


@pytest.mark.parametrize(("kind", "expected"), [("tiny_v_pipeline", StableDiffusion), ("tiny_xl_pipeline", StableDiffusionXL)])
def test_the_family_is_read_from_the_files(kind: str, expected: type, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Under a name that lies."""
    pipeline = request.getfixturevalue(kind)
    folder = tmp_path / "flux-sd3"
    pipeline.save_pretrained(folder, safe_serialization=True)
    family = load(str(folder))
    assert type(family) is expected
    assert family.noise_scheduler.config.prediction_type == pipeline.scheduler.config.prediction_type
    for name, parameter in pipeline.unet.named_parameters():
        assert torch.equal(family.denoiser.get_parameter(name), parameter), name


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("kind", [PNDMScheduler, DDIMScheduler, EulerDiscreteScheduler])
def test_what_the_denoiser_predicts_is_the_samplers_and_the_trainings(kind: Any, prediction_type: Any, folder: Path) -> None:
    """In a folder whose schedule does not say it, as those of SD 1.x."""
    file = folder / "scheduler" / "scheduler_config.json"
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
    file.write_text(json.dumps({"_class_name": kind.__name__, "_diffusers_version": "0.6.0", "steps_offset": 1, **betas}))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", kind.__name__]}))
    family = load(str(folder), LoadConfig(prediction_type=prediction_type))
    for scheduler in (family.pipeline.scheduler, family.noise_scheduler):
        assert {key: scheduler.config[key] for key in betas} == betas
        assert scheduler.config.prediction_type == prediction_type
    latents, noise = torch.ones(1, 4, 8, 8), torch.zeros(1, 4, 8, 8)
    assert family.target(latents, noise, torch.tensor([500])).any() == (prediction_type == "v_prediction")


def test_an_xl_folder_needs_both_text_encoders(tiny_xl_pipeline: StableDiffusionXLPipeline, tmp_path: Path) -> None:
    tiny_xl_pipeline.save_pretrained(tmp_path / "xl", safe_serialization=True)
    shutil.rmtree(tmp_path / "xl" / "text_encoder_2")
    with pytest.raises(ValueError, match="has no folder text_encoder_2"):
        load(str(tmp_path / "xl"))


@pytest.mark.parametrize("single_file", [False, True])
def test_the_dtype_is_the_denoisers_and_the_vae_keeps_its_values_in_float32(
    single_file: bool, folder: Path, tiny_pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    """Every value of the VAE as the file has it; those of the denoiser and the text encoder rounded once."""
    path = tmp_path / "model.safetensors" if single_file else folder
    if single_file:
        write_single_file(tiny_pipeline, path, {}, None, "tiny")
    loaded = load(str(path), LoadConfig(dtype="bfloat16")).pipeline
    for part, dtype in (("unet", torch.bfloat16), ("text_encoder", torch.bfloat16), ("vae", torch.float32)):
        before, after = (getattr(pipeline, part).state_dict() for pipeline in (tiny_pipeline, loaded))
        assert {p.dtype for p in getattr(loaded, part).parameters()} == {dtype}
        assert all(torch.equal(values.to(after[name].dtype), after[name]) for name, values in before.items()), part
    assert any((p != p.bfloat16()).any() for p in loaded.vae.parameters()), "they could be told from rounded ones"


def test_a_variant_is_loaded_when_asked_for_and_named_when_not(tiny_pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    tiny_pipeline.save_pretrained(folder, safe_serialization=True, variant="fp16")
    assert torch.equal(load(str(folder), LoadConfig(variant="fp16")).denoiser.conv_in.bias, tiny_pipeline.unet.conv_in.bias)
    with pytest.raises(ValueError, match="give --variant fp16"):
        load(str(folder))
    with pytest.raises(ValueError, match="no weights of the variant 'bf16'"):
        load(str(folder), LoadConfig(variant="bf16"))
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.fp16.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "diffusion_pytorch_model.fp16.safetensors"}}))
    with pytest.raises(ValueError, match="names shards of a variant in an old way"):
        load(str(folder), LoadConfig(variant="fp16"))
    index.unlink()
    (folder / "unet" / "LICENSE").touch()  # a name without a dot, which diffusers takes for none
    with pytest.raises(ValueError, match="is not a Stable Diffusion pipeline that loads"):
        load(str(folder), LoadConfig(variant="fp16"))


def test_weights_under_a_name_that_is_not_loaded_are_told(folder: Path) -> None:
    next((folder / "unet").glob("*.safetensors")).rename(folder / "unet" / "weights.safetensors")
    with pytest.raises(ValueError, match=r"has no diffusion_pytorch_model\.safetensors, which is what is loaded, but weights"):
        load(str(folder))


def test_a_shard_that_is_not_there_is_named(folder: Path) -> None:
    weights = next((folder / "unet").glob("*.safetensors"))
    index = {"weight_map": {"a": weights.name, "b": "diffusion_pytorch_model-00002-of-00002.safetensors"}}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="lacks diffusion_pytorch_model-00002-of-00002"):
        load(str(folder))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_weights_that_are_not_finite_are_refused(part: str, folder: Path) -> None:
    file = next((folder / part).glob("*.safetensors"))
    tensors = load_file(file)
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point() and "position" not in name)
    tensors[name].view(-1)[0] = math.nan
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"is damaged: {part}\..* not finite"):
        load(str(folder))


@pytest.mark.parametrize("content", [b"", b"\x00" * 7, b"\xff" * 64])
def test_a_file_that_is_not_safetensors_is_refused(content: bytes, tmp_path: Path, folder: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors is not a whole safetensors file"):
        load(str(tmp_path / "model.safetensors"))
    next((folder / "vae").glob("*.safetensors")).write_bytes(content)
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        load(str(folder))


BODY_NAME, REFINER = "first_stage_model.decoder.conv_in.weight", "conditioner.embedders.0.model.ln_final.weight"
BODY = {"first_stage_model.decoder.conv_in.weight": torch.zeros(1), "cond_stage_model.transformer.x": torch.zeros(1)}
FIRST = "model.diffusion_model.input_blocks.0.0.weight"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"lora_unet_down_blocks_0.lora_up.weight": torch.zeros(1)}, "is a LoRA"),
        ({"down_blocks.0.resnets.0.conv1.weight": torch.zeros(1)}, "part of a diffusers folder: give the whole folder"),
        ({"double_blocks.0.img_attn.proj.weight": torch.zeros(1)}, "is no checkpoint"),
        ({FIRST: torch.zeros(8, 4, 3, 3)}, "has a UNet but no VAE"),
        ({FIRST: torch.zeros(8, 9, 3, 3), **BODY}, "takes 9 channels: inpainting"),
        ({FIRST.replace("weight", "bias"): torch.zeros(8), **BODY}, "its UNet is not whole"),
        ({FIRST: torch.zeros(8, 4, 3, 3), BODY_NAME: torch.zeros(1), REFINER: torch.zeros(1)}, "is an SDXL refiner"),
    ],
)
def test_a_single_file_that_is_no_checkpoint_of_ours(tensors: dict[str, Tensor], message: str, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        load(str(tmp_path / "model.safetensors"))


def test_a_hub_id_that_is_not_cached_says_what_to_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = LoadConfig(revision="v2", cache_dir=str(tmp_path))
    words = r"no folder or file owner/name here; .*could not be downloaded .*`hf download owner/name --revision v2 --local-dir"
    with pytest.raises(ValueError, match=words) as error:
        load("owner/name", config)
    assert "--model" not in str(error.value), "commands without that option load models too"


def test_the_parts_that_a_hub_id_is_downloaded_without_are_not_asked_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stable Diffusion 1.4's own index names an image processor and a safety checker; neither is downloaded."""
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"feature_extractor": ["transformers", "CLIPImageProcessor"], "requires_safety_checker": True}
    index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    for name in (
        "feature_extractor/preprocessor_config.json",
        "safety_checker/config.json",
        "safety_checker/model.safetensors",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")

    def download(_model: str, **asked: Any) -> str:
        files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        patterns = {"allow_patterns": asked["allow_patterns"], "ignore_patterns": asked["ignore_patterns"]}
        for name in filter_repo_objects(files, **patterns):
            (tmp_path / "snapshot" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / name, tmp_path / "snapshot" / name)
        return str(tmp_path / "snapshot")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    pipeline = load("owner/name").pipeline
    assert pipeline.safety_checker is None and pipeline.feature_extractor is None and pipeline.image_encoder is None


def test_a_device_of_several_processes_is_each_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.load.num_processes", lambda: 2)
    with pytest.raises(ValueError, match="--device meta would put all 2 processes on one"):
        device_of("meta")
    assert device_of("cpu") == "cpu"


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (DDIMScheduler(prediction_type="sample"), "predicts sample: only epsilon and v_prediction"),
        (EDMEulerScheduler(), "has the noise schedule EDMEulerScheduler"),
    ],
)
def test_a_schedule_that_cannot_be_trained_on_is_refused(scheduler: Any, message: str, folder: Path) -> None:
    shutil.rmtree(folder / "scheduler")
    scheduler.save_pretrained(folder / "scheduler")
    index = json.loads((folder / "model_index.json").read_text()) | {"scheduler": ["diffusers", type(scheduler).__name__]}
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=message):
        load(str(folder))


def test_a_device_that_is_not_here_is_named() -> None:
    with pytest.raises(ValueError, match="there is no device 'cuda:9' here"):
        device_of("cuda:9")


def test_an_inpainting_model_is_refused(folder: Path, tiny_pipeline: StableDiffusionPipeline) -> None:
    UNet2DConditionModel.from_config(tiny_pipeline.unet.config, in_channels=9).save_pretrained(folder / "unet")
    with pytest.raises(ValueError, match="takes 9 channels"):
        load(str(folder))


def test_a_folder_that_is_no_model_and_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no model_index\.json"):
        load(str(tmp_path))
    (tmp_path / "model.png").touch()
    with pytest.raises(ValueError, match=r"model\.png is no model: give a diffusers folder"):
        load(str(tmp_path / "model.png"))


@pytest.mark.parametrize("name", ["nothing", "./nothing/here", "/a/b", "~/x", "a/b/c"])
def test_a_name_that_is_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="there is no model"):
        model_path(name)


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


def over_all_files(folder: Path) -> str:
    """The hash as records hold it: over every file of every part."""
    digest = hashlib.sha256()
    for part in ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"):
        for file in sorted((folder / part).glob("*")):
            if file.suffix in (".safetensors", ".json", ".txt"):
                digest.update(f"{part}/{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def test_the_hash_of_the_embedded_model_is_the_one_in_the_records() -> None:
    record = json.loads((ROOT / "benchmarks" / "results" / "methods" / "default.json").read_text())
    assert model_hash("emoji") == record["base_sha256"] == over_all_files(EMOJI_WEIGHTS)


SIZES = {"one file": "10GB", "shards": "50KB"}


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_a_variant_that_comes_later_changes_no_hash(
    variant: str | None, size: str, tiny_pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    """Of a folder with one variant it is over every file, whatever is asked for; of one with two, over what is loaded."""
    folder, config = tmp_path / "model", LoadConfig(variant=variant)
    tiny_pipeline.save_pretrained(folder, safe_serialization=True, variant=variant, max_shard_size=size)
    before = model_hash(str(folder), config)
    assert before == model_hash(str(folder), LoadConfig(variant="bf16")) == over_all_files(folder)
    later = None if variant else "fp16"
    tiny_pipeline.save_pretrained(tmp_path / "later", safe_serialization=True, variant=later, max_shard_size=size)
    shutil.copytree(tmp_path / "later", folder, dirs_exist_ok=True)
    assert len(list((folder / "unet").glob("*.safetensors"))) > (2 if size == "50KB" else 1)
    assert model_hash(str(folder), config) == before != over_all_files(folder)
    other = model_hash(str(folder), LoadConfig(variant=later))
    weights = sorted((folder / "unet").glob("*.safetensors"))
    loaded = next(file for file in weights if ("fp16" in file.name) is (variant == "fp16"))
    loaded.write_bytes(loaded.read_bytes()[:-1] + b"\x7f")
    assert model_hash(str(folder), config) != before and model_hash(str(folder), LoadConfig(variant=later)) == other


def test_the_embedded_model_as_a_single_file_is_the_embedded_model(tmp_path: Path) -> None:
    """Its configs and tokenizer are in the header: nothing else is needed, and nothing is asked of a hub."""
    file = tmp_path / "model.safetensors"
    emoji = load("emoji")
    write_single_file(emoji.pipeline, file, {"base": "x"}, None, "emoji")
    again = load(str(file))
    assert type(again) is StableDiffusion and again.vocabulary == emoji.vocabulary
    assert again.noise_scheduler.config.prediction_type == "epsilon"
    for part in ("unet", "vae", "text_encoder"):
        own, other = (dict(getattr(family.pipeline, part).named_parameters()) for family in (emoji, again))
        assert own.keys() == other.keys() and all(torch.equal(own[name], other[name]) for name in own), part
    assert all(
        torch.equal(value, again.encode_prompts(["a dog, neon style"])[key])
        for key, value in emoji.encode_prompts(["a dog, neon style"]).items()
    )
    assert made_from_emoji(str(file)) and not made_from_emoji("owner/name")


def test_a_checkpoint_without_configs_says_what_to_download(tiny_pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    """A stranger's file: diffusers takes its configs from the hub, which is not here."""
    write_single_file(tiny_pipeline, tmp_path / "ours.safetensors", {}, None, "tiny")
    save_file(load_file(tmp_path / "ours.safetensors"), tmp_path / "theirs.safetensors")
    with pytest.raises(
        ValueError, match=r"give the folder of a model .*`hf download stable-diffusion-v1-5/stable-diffusion-v1-5"
    ):
        load(str(tmp_path / "theirs.safetensors"))


VELOCITY = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


@pytest.mark.parametrize(
    ("ours", "marks", "spec", "expected"),
    [
        (True, (), {}, VELOCITY),
        (False, ("v_pred", "ztsnr"), {}, VELOCITY),
        (False, ("v_pred",), {}, {"prediction_type": "v_prediction", "rescale_betas_zero_snr": False}),
        (False, (), {"modelspec.prediction_type": "v"}, {"prediction_type": "v_prediction", "rescale_betas_zero_snr": False}),
        (False, (), {"modelspec.prediction_type": "epsilon"}, {"prediction_type": "epsilon", "rescale_betas_zero_snr": False}),
    ],
)
def test_a_single_files_own_schedule_is_taken_for_what_diffusers_would_take(
    ours: bool,
    marks: tuple[str, ...],
    spec: dict[str, str],
    expected: dict[str, Any],
    tiny_xl_pipeline: StableDiffusionXLPipeline,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """diffusers gives every XL file the schedule of the configs that it is loaded with, which predicts epsilon."""
    written, read = (copy.copy(tiny_xl_pipeline) for _ in range(2))
    written.scheduler = EulerDiscreteScheduler(beta_schedule="scaled_linear", **VELOCITY)
    read.scheduler = EulerDiscreteScheduler(beta_schedule="scaled_linear")
    monkeypatch.setattr("pipelines.single_file.TOKENIZER_LIMIT", 0)
    file = tmp_path / "model.safetensors"
    write_single_file(written, file, {}, None, "tiny")
    if not ours:
        tensors = {name: values for name, values in load_file(file).items() if name not in ("v_pred", "ztsnr")}
        save_file(tensors | {name: torch.empty(0) for name in marks}, file, spec)
    read.save_pretrained(tmp_path / "configs")
    monkeypatch.setattr(StableDiffusionXLPipeline, "from_single_file", lambda *_, **__: read)
    family = load(str(file), LoadConfig(config=str(tmp_path / "configs")))
    assert {key: family.pipeline.scheduler.config[key] for key in expected} == expected
    assert family.noise_scheduler.config.prediction_type == expected["prediction_type"]


def test_a_text_encoder_under_its_names_of_2022_is_told_of(tmp_path: Path) -> None:
    old = {"cond_stage_model.transformer.encoder.layers.0.mlp.fc1.weight": torch.zeros(1)}
    body = {"first_stage_model.decoder.conv_in.weight": torch.zeros(1), FIRST: torch.zeros(8, 4, 3, 3)}
    save_file(body | old, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="names its text encoder's tensors as in 2022"):
        load(str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("part", ["model.diffusion_model", "first_stage_model", "cond_stage_model"])
def test_a_single_file_that_lacks_a_tensor_is_one_sentence(part: str, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    write_single_file(load("emoji").pipeline, file, {"base": "x"}, None, "emoji")
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    dropped = next(name for name in tensors if name.startswith(part) and "norm" in name)
    save_file({name: values for name, values in tensors.items() if name != dropped}, file, metadata)
    with pytest.raises(
        ValueError, match=r"is not whole: (it lacks text_encoder.*norm|some tensors of its UNet or VAE are missing)"
    ):
        load(str(file))
