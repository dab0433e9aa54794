"""The large networks that measure pictures of full-size models; their weights come from a cache or a path, never from us."""

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from erase.files import sha256
from eval.pictures import Pixels

INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
RESNET = "resnet50-11ad3fa6.pth"
ALEXNET = "alexnet-owt-7be5be79.pth"
CLIP = "openai/clip-vit-base-patch32"


def checkpoint(name: str, given: Path | None, what: str, option: str) -> Path:
    """The file of weights: the given one, or the one of that name in torch's cache; raises ValueError if it is in neither."""
    path = given or Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.is_file():
        raise ValueError(
            f"{what} needs the weights {name}: there is no file {path}; put it there or give its path with {option}."
        )
    return path


def load_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a torch file read as data alone (nothing in it can run)."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} holds no weights that can be read: {' '.join(str(error).split())[:150]}") from error
    except Exception as error:
        if type(error).__name__ != "UnpicklingError":
            raise
        raise ValueError(f"{path} holds more than tensors and is not loaded: {' '.join(str(error).split())[:100]}") from error
    return weights


def stacked(batch: list[Pixels]) -> Tensor:
    """Pictures (N, 3, H, W) of 8-bit values."""
    return torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2).contiguous()


class Inception:
    """The Inception of FID, in torch-fidelity's implementation: 2048 pooled features."""

    name = "Inception (FID)"

    def __init__(self, given: Path | None = None) -> None:
        self.path = checkpoint(INCEPTION, given, "FID", "--inception")
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise ValueError("FID needs torch-fidelity: `pip install 'erase-concepts[eval]'`.") from error
        weights = load_weights(self.path)
        with tempfile.TemporaryDirectory() as folder:
            # torch-fidelity unpickles whatever file it is given: so it is given one that was read as data and written anew
            copy = Path(folder) / "inception.pth"
            torch.save(weights, copy)
            try:
                self.network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(copy))
            except RuntimeError as error:
                raise ValueError(f"{self.path} does not hold torch-fidelity's Inception weights ({INCEPTION}).") from error

    @torch.no_grad()
    def features(self, batch: list[Pixels]) -> NDArray[np.float64]:
        """Features (N, 2048)."""
        return np.asarray(self.network(stacked(batch))[0].double().numpy())

    def card(self) -> dict[str, object]:
        """Name and file hash."""
        return {"name": self.name, "sha256": sha256(self.path)}


class ResNet:
    """torchvision's ResNet-50 (ImageNet, V2 weights): the likeliest of 1000 classes, as in the field's Imagenette tables."""

    name = "ResNet-50"

    def __init__(self, given: Path | None = None) -> None:
        from torchvision.models import ResNet50_Weights, resnet50

        self.path = checkpoint(RESNET, given, "ResNet-50", "--classifier")
        self.network = resnet50()
        try:
            self.network.load_state_dict(load_weights(self.path))
        except RuntimeError as error:
            raise ValueError(f"{self.path} does not hold torchvision's ResNet-50 weights ({RESNET}).") from error
        self.network.eval().requires_grad_(False)
        self.transform = ResNet50_Weights.IMAGENET1K_V2.transforms()

    @torch.no_grad()
    def read(self, batch: list[Pixels]) -> list[dict[str, Any]]:
        """{"index": class, "anything": its probability} of each picture."""
        probabilities = self.network(self.transform(stacked(batch))).softmax(1)
        best = probabilities.max(1)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [{"index": index, "anything": round(value, 4)} for index, value in pairs]

    @torch.no_grad()
    def features(self, batch: list[Pixels]) -> NDArray[np.float64]:
        """Pooled features (N, 2048); a Fréchet distance on them is FD-ResNet, not FID."""
        x = self.transform(stacked(batch))
        net = self.network
        x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
        for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
            x = layer(x)
        return np.asarray(net.avgpool(x).flatten(1).double().numpy())

    def card(self) -> dict[str, object]:
        """Name and file hash."""
        return {"name": self.name, "sha256": sha256(self.path)}


class Clip:
    """A CLIP model: how well a picture fits its prompt, and zero-shot which of a list of names it shows."""

    def __init__(self, model: str = CLIP) -> None:
        from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

        try:
            self.model = CLIPModel.from_pretrained(model, use_safetensors=True).eval().requires_grad_(False)
            self.tokenizer = CLIPTokenizer.from_pretrained(model)
            self.processor = CLIPImageProcessor.from_pretrained(model)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"the CLIP model {model} is not in the local cache and could not be downloaded: give a folder with --clip "
                f"(on a machine with network access: `hf download {model}`)."
            ) from error
        self.name = f"CLIP {Path(model).name}"

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Normalised embeddings (N, D)."""
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        pooled = self.model.text_model(**tokens).pooler_output
        return F.normalize(self.model.text_projection(pooled), dim=1)

    @torch.no_grad()
    def pictures(self, batch: list[Pixels]) -> Tensor:
        """Normalised embeddings (N, D)."""
        pixel_values = self.processor(images=batch, return_tensors="pt")["pixel_values"]
        return F.normalize(self.model.visual_projection(self.model.vision_model(pixel_values).pooler_output), dim=1)

    def scores(self, batch: list[Pixels], prompts: Sequence[str]) -> list[float]:
        """CLIP score of each picture for its prompt: 100 max(cosine, 0)."""
        cosines = (self.pictures(batch) * self.texts(prompts)).sum(1)
        return [round(value, 4) for value in (100 * cosines.clamp(min=0)).tolist()]

    def zero_shot(self, batch: list[Pixels], names: Sequence[str], template: str = "a photo of {}") -> list[dict[str, Any]]:
        """{"object": likeliest name, "anything": its probability} of each picture, among the template with each name."""
        logits = self.pictures(batch) @ self.texts([template.format(name) for name in names]).T * self.model.logit_scale.exp()
        best = logits.softmax(1).max(1)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [{"object": names[index], "anything": round(value, 4)} for index, value in pairs]

    def card(self) -> dict[str, object]:
        """Name and the hash of the weights in memory."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
        return {"name": self.name, "sha256": digest.hexdigest()}


def lpips() -> Callable[[list[Pixels], list[Pixels]], float]:
    """LPIPS (Zhang et al. 2018) with AlexNet: the distance of two pictures; torchmetrics brings its linear heads.

    The AlexNet weights are torchvision's, from torch's cache.
    """
    checkpoint(ALEXNET, None, "LPIPS", "$TORCH_HOME")
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
    except ImportError as error:
        raise ValueError("LPIPS needs torchmetrics: `pip install 'erase-concepts[eval]'`.") from error
    network = LearnedPerceptualImagePatchSimilarity(net_type="alex").net  # torchmetrics' function builds one for every call

    @torch.no_grad()
    def distance(one: list[Pixels], other: list[Pixels]) -> float:
        first, second = (stacked(batch).float() / 127.5 - 1 for batch in (one, other))
        return float(network(first, second).mean())

    return distance


def ssim() -> Callable[[list[Pixels], list[Pixels]], float]:
    """The structural similarity of two pictures (Wang et al. 2004; 1: the same), by torchmetrics; it needs no weights."""
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError as error:
        raise ValueError("SSIM needs torchmetrics: `pip install 'erase-concepts[eval]'`.") from error

    def similarity(one: list[Pixels], other: list[Pixels]) -> float:
        first, second = (stacked(batch).float() for batch in (one, other))
        found = structural_similarity_index_measure(first, second, data_range=255.0)
        assert isinstance(found, torch.Tensor)  # a pair only where more is asked for
        return float(found)

    return similarity
