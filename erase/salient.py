"""The weights that may change, and nothing else: training through a mask that cannot leak."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from erase.saliency import Mask


class SalientWeights:
    """The masked weights of a model as 1-D float32 parameters, for any torch optimizer.

    theta_u = m * theta + (1 - m) * theta_o (SalUn, Fan et al. 2024, eq. 5) holds by construction: only the chosen weights are
    ever written, whatever the optimizer, momentum or weight decay. After a backward pass the gradients are on
    `parameters()` (each dense gradient is freed as soon as it is complete); after `optimizer.step()` call `write()`.
    Optimizer memory is proportional to the mask's density, and the masters stay float32 under a 16-bit model.

    Raises ValueError if the mask names a tensor that the model lacks or has in another shape, or chooses nothing.
    """

    def __init__(self, model: nn.Module, mask: Mask) -> None:
        named = dict(model.named_parameters())
        for name, chosen in mask.items():
            if name not in named or named[name].shape != chosen.shape:
                have = tuple(named[name].shape) if name in named else "no such weight"
                raise ValueError(f"the mask's {name} is {tuple(chosen.shape)}, the model has {have}.")
        self._dense = {name: named[name] for name in mask if bool(mask[name].any())}
        if not self._dense:
            raise ValueError("the mask chooses no weight at all.")
        self._requires_grad = {name: p.requires_grad for name, p in named.items()}
        self._named = named
        self._index: dict[str, Tensor] = {}
        self.originals: dict[str, Tensor] = {}
        self.values: dict[str, nn.Parameter] = {}
        self._hooks = []
        for name, parameter in named.items():
            parameter.requires_grad_(name in self._dense)
        for name, parameter in self._dense.items():
            self._index[name] = mask[name].to(parameter.device).reshape(-1).nonzero()[:, 0]
            self.originals[name] = self._gather(name)
            self.values[name] = nn.Parameter(self.originals[name].float().clone())
            self._hooks.append(parameter.register_post_accumulate_grad_hook(self._pull(name)))

    def _gather(self, name: str) -> Tensor:
        return self._dense[name].detach().reshape(-1).index_select(0, self._index[name])

    def _scatter(self, name: str, values: Tensor) -> None:
        dense = self._dense[name].detach()
        values = values.to(dense.dtype)
        if dense.is_contiguous():
            dense.view(-1).index_copy_(0, self._index[name], values)
        else:  # channels_last: index in the logical order, through a contiguous copy
            dense.copy_(dense.reshape(-1).index_copy(0, self._index[name], values).view(dense.shape))

    def _pull(self, name: str) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            assert parameter.grad is not None
            gradient = parameter.grad.reshape(-1).index_select(0, self._index[name]).float()
            parameter.grad = None
            value = self.values[name]
            value.grad = gradient if value.grad is None else value.grad.add_(gradient)

        return hook

    def parameters(self) -> list[nn.Parameter]:
        """The salient weights, one 1-D float32 parameter per tensor that has any."""
        return list(self.values.values())

    @torch.no_grad()
    def write(self) -> None:
        """Put the present values into the model."""
        for name, value in self.values.items():
            self._scatter(name, value)

    @contextmanager
    @torch.no_grad()
    def original(self) -> Iterator[None]:
        """The model as it was before training, for the block's duration: the frozen teacher without a second copy."""
        try:
            for name, value in self.originals.items():
                self._scatter(name, value)
            yield
        finally:
            self.write()

    def index(self, name: str) -> Tensor:
        """Positions (K,) int64 of the tensor's salient weights in its flattened form."""
        return self._index[name]

    def close(self) -> None:
        """Take the hooks off and give every parameter its `requires_grad` back; the weights stay as they are."""
        for hook in self._hooks:
            hook.remove()
        for name, parameter in self._named.items():
            parameter.requires_grad_(self._requires_grad[name])
