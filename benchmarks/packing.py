"""A model retrained without a concept in one file of half its size, and the diffusers folder made from that file.

    python -m benchmarks.packing        # what it costs, on the embedded model's own weights; kept in results/packing.json

The UNet's matrices and kernels become int8 with a float16 scale for every 64 inputs of an output channel; its vectors and
the text encoder stay float16. The autoencoder has to be the embedded model's own and is not stored; nor is the tokenizer where
its files are the same.
"""

import argparse
import json
import math
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.environment import environment
from erase.export import bits, whole_folder
from erase.files import atomic, metadata_of, sha256, stream_safetensors, write_json
from erase.quiet import quiet_libraries
from erase.reading import check_safetensors, read_json
from pipelines.check import check_folder
from pipelines.family import Family
from pipelines.load import EMOJI_WEIGHTS, load, model_hash
from pipelines.single_file import CONFIGS, unpack_configs

FORMAT = "erase-yardstick-1"
MOST_BYTES = 12_000_000
GROUP = 64
LEVELS = 127
UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT_ENCODER = "text_encoder/model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXTS = ("model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json", "unet/config.json", "training.json")
EMBEDDED = ("vae", "tokenizer")
KEYS = {"format", "concept", *(f"{name}_sha256" for name in ("source", "unpacked", *EMBEDDED))}

Weights = dict[str, Tensor]


def in_groups(weights: Tensor) -> Tensor:
    """(out, groups, 64): each output channel's inputs, 64 by 64 as they lie in memory, the last group filled up with zeros."""
    rows = weights.flatten(1)
    return torch.nn.functional.pad(rows, (0, -rows.shape[1] % GROUP)).unflatten(1, (-1, GROUP))


def quantise(weights: Tensor) -> tuple[Tensor, Tensor]:
    """(int8 levels (out, ...), float16 scales (out, groups)) of weights (out, ...).

    Every weight is within half a scale of its level times its group's scale, and a group of zeros stays one. Scales are
    rounded up, so that no weight lies beyond the last level.
    """
    groups = in_groups(weights.double())
    exact = groups.abs().amax(2) / LEVELS
    scales = exact.half()
    # the bits of a float16 above 0, read as an integer, are one less than the next one's
    scales = torch.where(scales.double() < exact, (scales.view(torch.int16) + 1).view(torch.float16), scales)
    steps = torch.where(scales == 0, 1, scales.double())
    levels = (groups / steps[..., None]).round().to(torch.int8)
    return levels.flatten(1)[:, : weights.shape[1:].numel()].reshape(weights.shape), scales


def dequantise(levels: Tensor, scales: Tensor) -> Tensor:
    """The weights in float32, exactly level times scale; raises ValueError if the scales are another tensor's."""
    fitting = levels.ndim > 1 and scales.shape == (len(levels), math.ceil(levels.shape[1:].numel() / GROUP))
    if not fitting or scales.dtype != torch.float16 or levels.dtype != torch.int8:
        raise ValueError(f"levels {levels.dtype} {tuple(levels.shape)} have scales {scales.dtype} {tuple(scales.shape)}")
    weights = in_groups(levels.float()) * scales.float()[..., None]
    return weights.flatten(1)[:, : levels.shape[1:].numel()].reshape(levels.shape)


def pack(model: Path, concept: str, path: Path) -> None:
    """Write a diffusers folder's model as one file; the same model gives the same bytes.

    Raises ValueError if the model's autoencoder is not the embedded model's, a value is not finite, or the file were too large.
    """
    check_folder(model)
    _require_embedded_vae(model)
    header = {"format": FORMAT, "concept": concept, "source_sha256": model_hash(str(model)), "unpacked_sha256": ""}
    header |= {f"{part}_sha256": sha256(EMOJI_WEIGHTS / part) for part in EMBEDDED}
    kept: list[str] = []
    if sha256(model / "tokenizer") != header["tokenizer_sha256"]:
        header["tokenizer_sha256"] = ""
        kept = [file.relative_to(model).as_posix() for file in sorted((model / "tokenizer").iterdir())]
    texts = {name: (model / name).read_text(encoding="utf-8") for name in (*TEXTS, *kept)}
    packed = compress(load_file(model / UNET), load_file(model / TEXT_ENCODER))
    with tempfile.TemporaryDirectory() as folder, atomic(path) as temporary:
        _write(packed, header, texts, temporary)
        _write_folder(temporary, Path(folder))
        header["unpacked_sha256"] = sha256(Path(folder))
        _write(packed, header, texts, temporary)
        if (size := temporary.stat().st_size) > MOST_BYTES:
            raise ValueError(f"{path} would have {size:,} bytes and at most {MOST_BYTES:,} are kept: {model} is too large.")


def compress(unet: Mapping[str, Tensor], text_encoder: Mapping[str, Tensor]) -> Weights:
    """The tensors of a packed file, which lie there by name: float16 first, so that all of them begin at even bytes."""
    packed = {f"half/text_encoder/{name}": values.half() for name, values in text_encoder.items()}
    for name, values in unet.items():
        if values.ndim < 2:
            packed[f"half/unet/{name}"] = values.half()
        else:
            packed[f"levels/{name}"], packed[f"half/scales/{name}"] = quantise(values)
    return packed


def expand(packed: Mapping[str, Tensor]) -> tuple[Weights, Weights]:
    """(UNet, text encoder) from a packed file's tensors, in float16; raises ValueError if scales are missing or another's."""
    parts: dict[str, Weights] = {"unet": {}, "text_encoder": {}}
    for name, values in packed.items():
        kind, _, rest = name.partition("/")
        if kind == "levels":
            if f"half/scales/{rest}" not in packed:
                raise ValueError(f"{rest[:80]!r} has no scales")
            parts["unet"][rest] = dequantise(values, packed[f"half/scales/{rest}"]).half()
        elif not rest.startswith("scales/"):
            part, _, own = rest.partition("/")
            if kind != "half" or part not in parts or values.dtype != torch.float16 or not values.ndim:
                raise ValueError(f"it has a tensor {name[:80]!r}")
            parts[part][own] = values
    return parts["unet"], parts["text_encoder"]


def unpack(path: Path, folder: Path) -> bool:
    """Write a packed model as a diffusers folder in float16, whole or not at all; False if that is there already.

    Raises ValueError for a file that is none of these or is damaged, and for another folder of that name.
    """
    header = read_header(path)
    if folder.exists():
        if folder.is_dir() and sha256(folder) == header["unpacked_sha256"]:
            return False
        raise ValueError(f"{folder} is there and is not what {path} unpacks to: move it away, or name another folder.")
    with whole_folder(folder) as temporary:
        _write_folder(path, temporary)
        if sha256(temporary) != header["unpacked_sha256"]:
            raise ValueError(
                f"{path} is damaged: what it unpacks to is not what was packed; take it from the repository again."
            )
    return True


def read_header(path: Path) -> dict[str, str]:
    """What a packed file says of itself; raises ValueError for any other file, pickles among them, which are never opened."""
    try:
        check_safetensors(path)
        with safe_open(path, "pt") as file:
            header = metadata_of(file)
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{path} is no packed model: {error}.") from error
    if header.get("format") != FORMAT or header.keys() != KEYS:
        raise ValueError(f"{path} is no packed model: its header does not say {FORMAT} and what belongs to it.")
    return header


def _write(packed: Weights, header: dict[str, str], texts: dict[str, str], path: Path) -> None:
    metadata = {"erase": json.dumps(header, sort_keys=True), CONFIGS: json.dumps(texts, sort_keys=True)}
    stream_safetensors({name: [values] for name, values in packed.items()}, path, metadata)


def _write_folder(path: Path, folder: Path) -> None:
    """Write what a packed file holds into an empty folder, and the embedded model's parts that it stands on."""
    header = read_header(path)
    for part in EMBEDDED:
        digest = header[f"{part}_sha256"]
        if digest and sha256(EMOJI_WEIGHTS / part) != digest:
            raise ValueError(f"{path} was packed beside another {part} than this version's embedded model has: pack it again.")
        if digest:
            shutil.copytree(EMOJI_WEIGHTS / part, folder / part)
    unpack_configs(path, folder)
    try:
        unet, text_encoder = expand(load_file(path))
    except (ValueError, SafetensorError) as error:
        raise ValueError(f"{path} is damaged: {error}.") from error
    for name, weights in ((UNET, unet), (TEXT_ENCODER, text_encoder)):
        stream_safetensors({key: [values] for key, values in weights.items()}, folder / name, {"format": "pt"})


def _require_embedded_vae(model: Path) -> None:
    own, other = load_file(EMOJI_WEIGHTS / VAE), load_file(model / VAE)
    same = own.keys() == other.keys() and all(
        own[name].dtype == other[name].dtype and torch.equal(bits(own[name]), bits(other[name])) for name in own
    )
    configs = [read_json(folder / "vae" / "config.json") for folder in (EMOJI_WEIGHTS, model)]
    settings = [{key: value for key, value in config.items() if not key.startswith("_")} for config in configs]
    if not same or settings[0] != settings[1]:
        raise ValueError(
            f"{model} has an autoencoder of its own, which is not packed: retrain with "
            "`--set method.autoencoder=pipelines/emoji/weights/vae`."
        )


def relative_error(exact: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Root of the summed squares of the differences over that of the values themselves."""
    assert exact.keys() == other.keys()
    error = sum(float((exact[name].double() - other[name].double()).square().sum()) for name in exact)
    return math.sqrt(error / sum(float(values.double().square().sum()) for values in exact.values()))


@torch.no_grad()
def predictions(family: Family, num: int = 64) -> dict[str, Tensor]:
    """What the denoiser says to standard normal latents at times drawn at random, for prompts of objects in styles."""
    generator, vocabulary = torch.Generator().manual_seed(0), family.vocabulary
    assert vocabulary is not None
    denoiser: Any = family.denoiser
    size = denoiser.config.sample_size
    latents = torch.randn(num, 4, size, size, generator=generator)
    timesteps = torch.randint(family.num_train_timesteps, (num,), generator=generator)
    objects, styles = vocabulary.objects, vocabulary.styles
    prompts = [f"a {objects[k % len(objects)]}, {styles[k % len(styles)]} style" for k in range(num)]
    return {"model_pred": family.predict(latents, timesteps, family.encode_prompts(prompts)).float().cpu()}


def cost(model: Path, unpacked: Path, packed: Path) -> dict[str, Any]:
    """Bytes, and the relative errors (root mean square) of the UNet's matrices and kernels and of its predictions."""
    weights = [{n: w for n, w in load_file(folder / UNET).items() if w.ndim > 1} for folder in (model, unpacked)]
    said = [predictions(load(str(folder))) for folder in (model, unpacked)]
    return {
        "bytes": packed.stat().st_size,
        "unpacked_bytes": sum(file.stat().st_size for file in unpacked.rglob("*") if file.is_file()),
        "weights_error": relative_error(*weights),
        "predictions_error": relative_error(*said),
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    quiet_libraries()
    with tempfile.TemporaryDirectory() as name:
        packed, unpacked = Path(name) / "packed.safetensors", Path(name) / "unpacked"
        pack(EMOJI_WEIGHTS, "none", packed)
        unpack(packed, unpacked)
        figures = cost(EMOJI_WEIGHTS, unpacked, packed)
    write_json({**figures, "environment": environment()}, Path(__file__).parent / "results" / "packing.json")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
