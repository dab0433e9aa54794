"""Small classifiers, torchvision's ResNet-18 for CIFAR, and their files."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from erase.files import metadata_of, write_safetensors
from erase.reading import check_safetensors


def mlp(shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Two hidden layers of 256 and 128."""
    num_inputs = int(torch.Size(shape).numel())
    layers = [nn.Linear(num_inputs, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, num_classes)]
    return nn.Sequential(nn.Flatten(), *layers)


def cnn(shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Two convolutions with BatchNorm, each halving the picture, and a linear head."""
    channels, height, width = _picture(shape, "cnn", 4)
    blocks: list[nn.Module] = []
    for before, after in ((channels, 32), (32, 64)):
        blocks += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(64 * (height // 4) * (width // 4), num_classes))


def resnet18(shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """ResNet-18 (He et al. 2016) with the stem for small pictures: 3 x 3, stride 1, no pooling."""
    from torchvision.models import resnet18 as torchvision_resnet18

    channels, _, _ = _picture(shape, "resnet18", 8)
    model: nn.Module = torchvision_resnet18(num_classes=num_classes)
    model.conv1 = nn.Conv2d(channels, 64, 3, stride=1, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def _picture(shape: tuple[int, ...], architecture: str, smallest: int) -> tuple[int, int, int]:
    if len(shape) != 3 or min(shape[1:]) < smallest:
        raise ValueError(f"{architecture} needs pictures of at least {smallest} x {smallest}; rows are {shape}: use mlp.")
    return shape[0], shape[1], shape[2]


ARCHITECTURES: dict[str, Callable[[tuple[int, ...], int], nn.Module]] = {"mlp": mlp, "cnn": cnn, "resnet18": resnet18}


def build(architecture: str, shape: tuple[int, ...], num_classes: int, seed: int) -> nn.Module:
    """A freshly initialised classifier for rows of `shape`; the same seed gives the same weights."""
    if architecture not in ARCHITECTURES:
        raise ValueError(f"there is no architecture {architecture!r}: choose one of {', '.join(ARCHITECTURES)}.")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ARCHITECTURES[architecture](shape, num_classes)


def save_classifier(model: nn.Module, path: Path, provenance: dict[str, str]) -> None:
    """Write the weights and buffers; `provenance` needs architecture, shape and num_classes, so that it can be read back."""
    assert {"architecture", "shape", "num_classes"} <= provenance.keys()
    tensors = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    write_safetensors(tensors, path, {**provenance, "format": "erase-classifier-1"})


def load_classifier(path: Path) -> tuple[nn.Module, dict[str, str]]:
    """(model, provenance) as `save_classifier` wrote them; raises ValueError on any other file."""
    try:
        check_safetensors(path)
        with safe_open(path, "pt") as file:
            provenance = metadata_of(file)
            if provenance.pop("format", None) != "erase-classifier-1":
                raise ValueError("its header does not say erase-classifier-1")
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        shape = tuple(json.loads(provenance["shape"]))
        if not shape or not all(isinstance(size, int) and size > 0 for size in shape):
            raise ValueError(f"its rows have the shape {provenance['shape']}")
        model = build(provenance["architecture"], shape, int(provenance["num_classes"]), seed=0)
        model.load_state_dict(state)
    except (OSError, KeyError, RuntimeError, TypeError, ValueError, SafetensorError) as error:
        raise ValueError(f"{path} is not a classifier of this tool: {error}.") from error
    return model, provenance
