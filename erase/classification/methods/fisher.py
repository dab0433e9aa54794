"""Fisher forgetting (Golatkar et al., CVPR 2020): a Newton correction towards the retain set, and noise that hides the rest.

theta_u = theta - F_r^-1 grad L(theta; D_r) + sigma F_r^-1/4 b,  b ~ N(0, I), F_r the Fisher information of the retain set.
Losses are sums over rows, with (l2 n / 2) ||theta||^2 where the model was trained with a penalty. F is the true Fisher
(expectation over the model's own labels); for a model linear in its weights it is the Hessian. The scrubbed weights are
N(mean, sigma^2 F^-1/2), so that what they tell about the forget set is bounded by the KL divergence of two Gaussians.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from erase.classification.loop import evaluation_mode
from erase.classification.methods.base import ClassifierMethod, Task
from erase.classification.methods.influence import FlatWeights, summed_gradient
from erase.classification.split import Loader

LARGEST_FULL = 5000  # weights for which a full Fisher matrix is still small: 200 MB in float64
_CHUNK = 1 << 25  # numbers in the matrix of scores at a time


class Fisher(ClassifierMethod):
    name: Literal["fisher"] = "fisher"
    """A Newton correction and noise shaped by the Fisher information of the retain set."""
    sigma: float = Field(0.1, ge=0)
    """Size of the noise: more forgets more and keeps less."""
    newton: bool = True
    """Whether the correction is made, or noise alone is added."""
    damping: float = Field(1e-3, ge=0)
    """Added to the Fisher information of each row: without it, directions that no row uses get endless noise."""
    l2: float = Field(0.0, ge=0)
    """The penalty per row that the model was trained with, as part of its loss."""
    curvature: Literal["diagonal", "full"] = "diagonal"
    """`full` keeps the whole matrix, for models of up to 5000 weights."""


@dataclass(frozen=True)
class Scrubbed:
    """The distribution of the scrubbed weights: its mean (P,) and its covariance, (P, P) or the diagonal's (P,)."""

    mean: Tensor
    covariance: Tensor

    def draw(self, generator: torch.Generator) -> Tensor:
        """One vector of weights."""
        noise = torch.randn(self.mean.shape, generator=generator).to(self.mean)
        if self.covariance.ndim == 1:
            return self.mean + self.covariance.sqrt() * noise
        return self.mean + matrix_power(self.covariance, 0.5) @ noise


def fisher(config: Fisher, task: Task) -> None:
    """Put one draw of the scrubbed weights into the model."""
    weights = FlatWeights(task.model, task.salient)
    before = weights.gather(tuple(tensor.detach() for tensor in weights.dense))
    scrubbed = scrub(config, task.model, task.retain, weights)
    weights.add(scrubbed.draw(task.generator) - before)


def scrub(config: Fisher, model: nn.Module, retain: Loader, weights: FlatWeights | None = None) -> Scrubbed:
    """The distribution that the weights are drawn from; the model is not changed."""
    weights = weights or FlatWeights(model, None)
    with evaluation_mode(model):
        present = weights.gather(tuple(tensor.detach() for tensor in weights.dense))
        if config.curvature == "full" and len(present) > LARGEST_FULL:
            raise ValueError(f"a full Fisher matrix of {len(present)} weights is too large: take curvature=diagonal.")
        gradient, rows = summed_gradient(model, weights, retain)
        information = fisher_information(model, weights, retain, full=config.curvature == "full")
    added = torch.full_like(present, rows * (config.damping + config.l2))
    information = information + (added if information.ndim == 1 else added.diag())
    smallest = information.min() if information.ndim == 1 else torch.linalg.eigvalsh(information)[0]
    if smallest <= 0:
        raise ValueError("some direction of the weights has no Fisher information and would get infinite noise: raise damping.")
    gradient = gradient + rows * config.l2 * present
    diagonal = information.ndim == 1
    step = gradient / information if diagonal else torch.linalg.solve(information, gradient)
    covariance = config.sigma**2 * (information**-0.5 if diagonal else matrix_power(information, -0.5))
    return Scrubbed(present - step if config.newton else present, covariance)


@torch.no_grad()
def fisher_information(model: nn.Module, weights: FlatWeights, data: Loader, *, full: bool = False) -> Tensor:
    """Sum over rows of E_{c ~ p(.|x)} [g g^T], g = grad log p(c|x): the matrix (P, P), or its diagonal (P,)."""
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if not full and set(weights.names) <= {f"{name}.{kind}" for name in linear for kind in ("weight", "bias")}:
        diagonal = _diagonal_of_linear_layers(model, weights, data, linear)
        if diagonal is not None:
            return diagonal
    total = torch.zeros(())
    for scores in _weighted_scores(model, weights, data):
        total = total.to(scores) + (scores.T @ scores if full else scores.square().sum(0))
    return total


def _diagonal_of_linear_layers(
    model: nn.Module, weights: FlatWeights, data: Loader, layers: dict[str, nn.Linear]
) -> Tensor | None:
    """The diagonal without a gradient per row: a weight's is its input times its output's gradient, so their squares multiply.

    None where a layer sees more than one vector per row, which makes the gradient a sum of such products.
    """
    calls: list[tuple[str, Tensor, Tensor]] = []

    def keep(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        return lambda _, arguments, output: calls.append((name, arguments[0].detach(), output))

    squares = {name: torch.zeros_like(tensor) for name, tensor in zip(weights.names, weights.dense, strict=True)}
    hooks = [module.register_forward_hook(keep(name)) for name, module in layers.items()]
    try:
        for inputs, _ in data:
            calls.clear()
            with torch.enable_grad():
                log_p = model(inputs).log_softmax(1)
                sums = [log_p[:, c].sum() for c in range(log_p.shape[1])]
            if len({name for name, _, _ in calls}) < len(calls) or any(output.ndim != 2 for _, _, output in calls):
                return None
            trained = [call for call in calls if call[2].requires_grad]
            for c, total in enumerate(sums):
                gradients = torch.autograd.grad(total, [output for _, _, output in trained], retain_graph=True)
                for (name, entered, _), gradient in zip(trained, gradients, strict=True):
                    weighted = gradient**2 * log_p[:, c, None].detach().exp()
                    if f"{name}.weight" in squares:
                        squares[f"{name}.weight"] += weighted.T @ entered**2
                    if f"{name}.bias" in squares:
                        squares[f"{name}.bias"] += weighted.sum(0)
    finally:
        for hook in hooks:
            hook.remove()
    return weights.gather(tuple(squares.values()))


def _weighted_scores(model: nn.Module, weights: FlatWeights, data: Loader) -> Iterator[Tensor]:
    """sqrt(p(c|x)) grad log p(c|x), a row for each x and c: (b C, P), b rows at a time."""
    names = dict(zip(weights.names, weights.dense, strict=True))

    def log_probabilities(values: dict[str, Tensor], row: Tensor) -> tuple[Tensor, Tensor]:
        logits = functional_call(model, values, (row[None],))[0]
        result = logits.log_softmax(0)
        return result, result

    scores_of = vmap(jacrev(log_probabilities, has_aux=True), in_dims=(None, 0))
    for inputs, _ in data:
        num_classes = model(inputs[:1]).shape[1]
        rows = max(1, _CHUNK // (num_classes * sum(t.numel() for t in weights.dense)))
        for part in inputs.split(rows):
            jacobian, log_p = scores_of({name: tensor.detach() for name, tensor in names.items()}, part)
            flat = []
            for name in weights.names:
                values = jacobian[name].flatten(2)
                flat.append(values[..., weights.salient.index(name)] if weights.salient else values)
            yield (torch.cat(flat, 2) * (log_p / 2).exp()[..., None]).flatten(0, 1)


def matrix_power(matrix: Tensor, power: float) -> Tensor:
    """A power of a symmetric positive definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values**power) @ vectors.T


def gaussian_kl(p: Scrubbed, q: Scrubbed) -> float:
    """KL(p || q) of two Gaussians in nats; their covariances are both full or both diagonal.

    With p the scrubbed weights and q those of a model that was trained without the forget set and given the same noise, it
    bounds what the weights tell about the forget set (Golatkar et al. 2020, Prop. 1 and 2); 0 means complete forgetting.
    """
    difference = q.mean - p.mean
    if p.covariance.ndim == 1:
        ratio = p.covariance / q.covariance
        return float(0.5 * (ratio.sum() + (difference**2 / q.covariance).sum() - len(ratio) - ratio.log().sum()))
    solved = torch.linalg.solve(q.covariance, p.covariance)
    distance = difference @ torch.linalg.solve(q.covariance, difference)
    log_determinants = torch.linalg.slogdet(q.covariance).logabsdet - torch.linalg.slogdet(p.covariance).logabsdet
    return float(0.5 * (solved.trace() + distance - len(difference) + log_determinants))


def information_bound(divergences: list[float]) -> float:
    """Upper bound (nats) on the mutual information of forget set and scrubbed weights: the mean KL over forget sets."""
    if not divergences or min(divergences) < -1e-6:
        raise ValueError("the bound is a mean of KL divergences: give at least one, none of them negative.")
    return sum(divergences) / len(divergences)
