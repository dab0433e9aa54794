"""Every method on real layers: what the mask promises, what each does to forget and retain rows, and what it refuses."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from erase.classification.bench import Recipe, config_for, run_method, train_original
from erase.classification.data import load_dataset
from erase.classification.loop import forget_mask, predict, train, training_mode
from erase.classification.methods import METHODS, method_config, unlearn
from erase.classification.methods.boundary import BoundaryExpand, nearest_wrong_class
from erase.classification.methods.finetune import FineTune, GradientAscent, L1Sparse, Retrain
from erase.classification.methods.relabel import RandomLabel, SalUn, other_labels
from erase.classification.metrics import forgetting_row
from erase.classification.models import build, load_classifier, save_classifier
from erase.classification.split import Batches, split_class
from erase.saliency import density_of

MASKED = [name for name in METHODS if name != "retrain"]
CPU_SECONDS: dict[str, Any] = {"influence": {"num_iterations": 3}}


def rows(num: int = 48, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noisy 8 x 8 pictures of three classes: a bright band in another place for each."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num) % 3
    pictures = 0.3 * torch.rand(num, 1, 8, 8, generator=generator)
    for row, label in enumerate(labels):
        pictures[row, 0, 2 * int(label) + 1] += 0.6
    return pictures, labels


def trained(architecture: str = "cnn") -> nn.Module:
    model = build(architecture, (1, 8, 8), 3, seed=0)
    train(model, Batches(*rows(), 16, torch.Generator().manual_seed(0)), epochs=6, learning_rate=0.05)
    return model


@pytest.fixture(scope="module")
def cnn() -> nn.Module:
    return trained()


def loaders(seed: int = 0) -> dict[str, Batches]:
    inputs, labels = rows()
    forget = labels == 1
    return {
        "forget": Batches(inputs[forget], labels[forget], 8, torch.Generator().manual_seed(seed)),
        "retain": Batches(inputs[~forget], labels[~forget], 8, torch.Generator().manual_seed(seed + 1)),
    }


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("method", MASKED)
def test_outside_the_mask_nothing_moves_not_even_batchnorms_statistics(cnn: nn.Module, method: str) -> None:
    model = copy.deepcopy(cnn)
    before, modes = state(model), [module.training for module in model.modules()]
    config = method_config({"name": method, "density": 0.3, **CPU_SECONDS.get(method, {})})
    done = unlearn(model, config, **loaders())
    assert done.mask is not None and density_of(done.mask) == pytest.approx(0.3, abs=1e-3) and done.seconds > 0
    moved = 0
    for name, value in state(model).items():
        changed = value != before[name]
        if name in done.mask:
            assert not changed[~done.mask[name]].any(), name
            moved += int(changed.sum())
        else:
            assert not changed.any(), f"{name}: a buffer moved"
    assert moved > 0.9 * sum(int(values.sum()) for values in done.mask.values())
    assert [module.training for module in model.modules()] == modes
    assert all(p.requires_grad for p in model.parameters()) and not any(p.grad is not None for p in model.parameters())


def test_batchnorms_statistics_follow_the_data_if_asked(cnn: nn.Module) -> None:
    model = copy.deepcopy(cnn)
    unlearn(model, FineTune(epochs=1, batchnorm="update"), **loaders())
    assert not torch.equal(model.state_dict()["1.running_mean"], cnn.state_dict()["1.running_mean"])


def test_a_mask_of_everything_is_no_mask_at_all(cnn: nn.Module) -> None:
    """SalUn where every weight may change = random labels, bit for bit."""
    everything = {name: torch.ones_like(p, dtype=torch.bool) for name, p in cnn.named_parameters()}
    masked, dense = copy.deepcopy(cnn), copy.deepcopy(cnn)
    unlearn(masked, SalUn(epochs=2, alpha=2.0), mask=everything, seed=3, **loaders())
    unlearn(dense, RandomLabel(epochs=2, alpha=2.0), seed=3, **loaders())
    assert all(torch.equal(a, b) for a, b in zip(masked.parameters(), dense.parameters(), strict=True))
    assert not torch.equal(next(iter(dense.parameters())), next(iter(cnn.parameters())))


def test_the_mask_does_not_depend_on_the_batches(cnn: nn.Module) -> None:
    inputs, labels = rows(12)
    masks = [forget_mask(cnn, Batches(inputs, labels, size), 0.2) for size in (1, 5, 12)]
    for mask in masks[1:]:
        differ = sum(int((mask[name] != masks[0][name]).sum()) for name in mask)
        assert differ <= 4  # sums in another order: a weight on the edge may swap places


def test_any_module_and_any_data_loader_will_do() -> None:
    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.drop, self.head = nn.Linear(64, 16), nn.Dropout(0.1), nn.Linear(16, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.head(self.drop(self.body(inputs.flatten(1)).relu()))

    torch.manual_seed(0)
    model, (inputs, labels) = Mine(), rows(96)
    train(model, DataLoader(TensorDataset(inputs, labels), 16, shuffle=True), epochs=15, learning_rate=0.1)
    forgotten = labels == 1
    forget, retain = (DataLoader(TensorDataset(inputs[m], labels[m]), 16, shuffle=True) for m in (forgotten, ~forgotten))

    def accuracy(data: DataLoader) -> float:
        probabilities, truth = predict(model, data)
        return float((probabilities.argmax(1) == truth).float().mean())

    assert accuracy(forget) == accuracy(retain) == 1.0
    unlearn(model, SalUn(epochs=10, learning_rate=0.05), forget=forget, retain=retain)
    assert accuracy(forget) < 0.1 and accuracy(retain) > 0.9


def test_wrong_labels_are_never_right_and_uniform() -> None:
    labels = torch.arange(5).repeat(4000)
    wrong = other_labels(labels, 5, torch.Generator().manual_seed(0))
    assert not (wrong == labels).any()
    for label in range(5):
        counts = wrong[labels == label].bincount(minlength=5)
        others = [int(counts[k]) for k in range(5) if k != label]
        assert min(others) > 900 and max(others) < 1100  # 1000 each, 3.6 standard deviations


def test_wrong_labels_can_be_drawn_once() -> None:
    """Each forget row has weights of its own: labels drawn once can be learnt by heart, labels drawn anew cannot."""
    forget = Batches(torch.eye(20)[:16], torch.zeros(16).long(), 16)
    retain = Batches(torch.eye(20)[16:], torch.zeros(4).long(), 4)
    sure = {}
    for redraw in (True, False):
        model = nn.Linear(20, 4)
        unlearn(model, RandomLabel(epochs=200, learning_rate=1.0, redraw=redraw), forget=forget, retain=retain)
        sure[redraw] = float(predict(model, forget)[0].max(1).values.mean())
    assert sure[False] > 0.9 > 0.7 > sure[True]


def loss_on(model: nn.Module, data: Batches) -> float:
    model.eval()
    with torch.no_grad():
        return sum(float(F.cross_entropy(model(x), y, reduction="sum")) for x, y in data)


def test_each_method_does_to_the_losses_what_it_is_for(cnn: nn.Module) -> None:
    data = loaders()
    forget, retain = loss_on(cnn, data["forget"]), loss_on(cnn, data["retain"])
    for config, up in (
        (GradientAscent(epochs=2, learning_rate=0.01), True),
        (method_config({"name": "boundary_shrink", "epochs": 3}), True),
        (BoundaryExpand(epochs=3), True),
        (method_config({"name": "random_label", "epochs": 3}), True),
        (method_config({"name": "influence", "damping": 0.1}), True),
        (FineTune(epochs=3, learning_rate=0.03), False),
    ):
        model = copy.deepcopy(cnn)
        unlearn(model, config, **loaders())
        if up:
            assert loss_on(model, data["forget"]) > 1.05 * forget, config
        else:
            assert loss_on(model, data["retain"]) < retain


def linear() -> tuple[nn.Module, Tensor, Tensor]:
    """A linear model of three classes without a bias, and twelve rows of it, in float64."""
    generator = torch.Generator().manual_seed(5)
    model = nn.Linear(4, 3, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.randn(3, 4, generator=generator, dtype=torch.float64))
    return model, torch.randn(12, 4, generator=generator, dtype=torch.float64), torch.arange(12) % 3


def gradient(weight: np.ndarray, inputs: Tensor, labels: Tensor) -> np.ndarray:
    """Of the mean cross-entropy of a linear model: the mean of (softmax - one-hot) times the row."""
    logits = inputs.numpy() @ weight.T
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return (shares - np.eye(len(weight))[labels.numpy()]).T @ inputs.numpy() / len(labels)


@pytest.mark.parametrize(("kind", "alpha"), [(RandomLabel, 3.0), (RandomLabel, 0.0), (SalUn, 3.0)])
def test_one_step_of_random_labels_by_hand(kind: type[RandomLabel], alpha: float) -> None:
    """CE of the forget rows under the wrong label, of which two classes leave one, plus alpha times the retain rows' CE."""
    model, inputs, _ = linear()
    model.weight, labels = nn.Parameter(model.weight[:2].detach().clone()), torch.arange(12) % 2
    before = model.weight.detach().numpy().copy()
    forget, retain = Batches(inputs[:4], labels[:4], 4), Batches(inputs[4:], labels[4:], 8)
    mask = {"weight": torch.tensor([[True, False, True, True], [False, True, True, False]])} if kind is SalUn else None
    unlearn(model, kind(epochs=1, learning_rate=0.5, alpha=alpha), forget=forget, retain=retain, mask=mask)
    step = gradient(before, inputs[:4], 1 - labels[:4]) + alpha * gradient(before, inputs[4:], labels[4:])
    allowed = 1.0 if mask is None else mask["weight"].numpy()
    np.testing.assert_allclose(model.weight.detach().numpy(), before - 0.5 * step * allowed, rtol=1e-5)  # salient: float32


@pytest.mark.parametrize(
    ("kind", "gamma", "decay"),
    [("ft", 0.0, 0.0), ("l1_sparse", 0.05, 0.0), ("l1_sparse", 0.0, 0.0), ("gradient_ascent", 0.0, 0.0), ("train", 0.0, 0.1)],
)
def test_four_steps_of_the_loop_in_numpy(kind: str, gamma: float, decay: float) -> None:
    """Momentum 0.9, a rate that falls along half a cosine, a penalty gamma (1 - t/T) |w| that fades, over two epochs."""
    model, inputs, labels = linear()
    weight = model.weight.detach().numpy().copy()
    data, other = Batches(inputs[:8], labels[:8], 4), Batches(inputs[8:], labels[8:], 4)
    if kind == "train":
        train(model, data, epochs=2, learning_rate=0.4, weight_decay=decay)
    elif kind == "gradient_ascent":
        unlearn(model, GradientAscent(epochs=2, learning_rate=0.4), forget=data, retain=other)
    else:
        config = FineTune(epochs=2, learning_rate=0.4) if kind == "ft" else L1Sparse(epochs=2, learning_rate=0.4, gamma=gamma)
        unlearn(model, config, forget=other, retain=data)
    velocity, sign = np.zeros_like(weight), -1 if kind == "gradient_ascent" else 1
    for step, rate in enumerate([0.4, 0.4 * (1 + np.sqrt(0.5)) / 2, 0.2, 0.4 * (1 - np.sqrt(0.5)) / 2]):
        part = slice(0, 4) if step % 2 == 0 else slice(4, 8)
        total = sign * gradient(weight, inputs[part], labels[part])
        total += gamma * (1, 0.75, 0.5, 0.25)[step] * np.sign(weight) + decay * weight
        velocity = 0.9 * velocity + total
        weight = weight - rate * velocity
    np.testing.assert_allclose(model.weight.detach().numpy(), weight, rtol=1e-9, atol=1e-12)


def test_the_fading_l1_penalty_makes_weights_small(cnn: nn.Module) -> None:
    norms = {}
    for config in (FineTune(epochs=2), L1Sparse(epochs=2, gamma=0.0), L1Sparse(epochs=2, gamma=0.05)):
        model = copy.deepcopy(cnn)
        unlearn(model, config, **loaders())
        norms[config] = sum(float(p.detach().abs().sum()) for p in model.parameters())
    plain, none, penalised = norms.values()
    assert plain == none and penalised < 0.95 * plain


def test_the_nearest_wrong_class_is_wrong_and_the_nearest(cnn: nn.Module) -> None:
    inputs, labels = rows()
    nearest = nearest_wrong_class(cnn, inputs, labels, 0.1)
    assert not (nearest == labels).any()
    line = nn.Linear(1, 3)  # class 0 left of 0, class 1 up to 10, class 2 beyond
    with torch.no_grad():
        line.weight.copy_(torch.tensor([[0.0], [1.0], [2.0]]))
        line.bias.copy_(torch.tensor([0.0, 0.0, -10.0]))
    found = nearest_wrong_class(line, torch.tensor([[0.5], [9.5]]), torch.tensor([1, 1]), 0.2)
    assert found.tolist() == [0, 2]


def test_the_shadow_class_leaves_no_trace_in_the_models_shape(cnn: nn.Module) -> None:
    model = copy.deepcopy(cnn)
    unlearn(model, BoundaryExpand(), **loaders())
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in cnn.state_dict().items()}
    assert not any(module._forward_pre_hooks for module in model.modules())
    with pytest.raises(ValueError, match="ends in a linear layer"):
        unlearn(nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten()), BoundaryExpand(), **loaders())


def test_retrain_is_a_fresh_model_trained_on_the_rest(cnn: nn.Module) -> None:
    def fresh() -> nn.Module:
        return build("cnn", (1, 8, 8), 3, seed=5)

    model, by_hand = copy.deepcopy(cnn), fresh()
    unlearn(model, Retrain(epochs=2), fresh=fresh, **loaders())
    train(by_hand, loaders()["retain"], epochs=2, learning_rate=0.1, weight_decay=5e-4)
    assert all(torch.equal(a, b) for a, b in zip(state(model).values(), state(by_hand).values(), strict=True))
    with pytest.raises(ValueError, match="needs `fresh`"):
        unlearn(model, Retrain(), **loaders())
    with pytest.raises(ValueError, match="takes no mask"):
        unlearn(model, Retrain(density=0.5), fresh=fresh, **loaders())


def test_mistakes_are_told_in_a_sentence(cnn: nn.Module) -> None:
    model = copy.deepcopy(cnn)
    with pytest.raises(ValueError, match="no method 'forgetful': choose one of retrain, ft"):
        method_config({"name": "forgetful"})
    with pytest.raises(ValueError, match="method salun: alpha is -1"):
        method_config({"name": "salun", "alpha": -1})
    with pytest.raises(ValueError, match="beta is 1: Extra inputs"):
        method_config({"name": "salun", "beta": 1})
    with pytest.raises(ValueError, match="give it a density or a mask"):
        unlearn(model, SalUn(density=None), **loaders())
    with pytest.raises(ValueError, match="the retain set is empty"):
        unlearn(model, SalUn(), **loaders() | {"retain": Batches(*rows(0), 8)})
    with pytest.raises(ValueError, match="smaller learning_rate than 1000000"):
        unlearn(model, GradientAscent(epochs=50, learning_rate=1e6), **loaders())
    assert all(p.requires_grad for p in model.parameters())


def test_a_classifier_is_the_same_after_a_file(cnn: nn.Module, tmp_path) -> None:
    path = tmp_path / "m.safetensors"
    save_classifier(cnn, path, {"architecture": "cnn", "shape": "[1, 8, 8]", "num_classes": "3", "method": "salun"})
    loaded, provenance = load_classifier(path)
    assert all(torch.equal(a, b) for a, b in zip(state(loaded).values(), state(cnn).values(), strict=True))
    assert provenance["method"] == "salun"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="is not a classifier of this tool"):
        load_classifier(path)


def test_the_resnet_has_the_stem_for_small_pictures_and_a_mask_fits_it() -> None:
    model = build("resnet18", (3, 16, 16), 4, seed=0)
    assert model.conv1.stride == (1, 1) and isinstance(model.maxpool, nn.Identity)
    inputs, labels = torch.rand(4, 3, 16, 16), torch.arange(4)
    with training_mode(model, "frozen"):
        assert model(inputs).shape == (4, 4) and not model.bn1.training and model.training
    mask = forget_mask(model, Batches(inputs, labels, 2), 0.5)
    assert density_of(mask) == pytest.approx(0.5, abs=1e-4)
    with pytest.raises(ValueError, match=r"resnet18 needs pictures of at least 8 x 8; rows are .5,.: use mlp"):
        build("resnet18", (5,), 4, seed=0)
    with pytest.raises(ValueError, match="choose one of mlp, cnn, resnet18"):
        build("vit", (5,), 4, seed=0)


def test_salun_forgets_a_digit_and_keeps_the_others() -> None:
    """The same figures as the table's, on a shorter training: the original knows threes, SalUn's model does not."""
    digits = load_dataset("digits")
    split = split_class(digits, 3)
    recipe = Recipe.model_validate({"original": {"epochs": 15}})
    original = train_original(digits, recipe, seed=7)
    before = forgetting_row(original, digits, split)
    config = config_for(recipe, "salun").model_copy(update={"learning_rate": 0.02, "epochs": 3})
    erased, _ = run_method(original, config, digits, split, recipe, seed=7)
    after = forgetting_row(erased, digits, split)
    assert before.ua <= 1 and before.ra > 98 and before.ta > 94
    assert after.ua >= 95 and after.ra >= 96 and after.ta >= 92
