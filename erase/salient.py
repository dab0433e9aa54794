"""The weights that may change, and nothing else: training through a mask that cannot leak."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from erase.processes import num_processes, sum_over_processes
from erase.saliency import Mask

KEEP = 1 << 30  # bytes of positions that are kept; above, they are unpacked from the mask's bits at each use
GROUP = 1 << 22  # salient weights that are float32 at a time while a lean optimizer steps


class SalientWeights:
    """The masked weights of a model as 1-D float32 parameters, for any torch optimizer.

    theta_u = m * theta + (1 - m) * theta_o (SalUn, Fan et al. 2024, eq. 5) holds by construction: only the chosen weights are
    ever written, whatever the optimizer, momentum or weight decay. After a backward pass the gradients are on
    `parameters()` (each dense gradient is freed as soon as it is complete); after `optimizer.step()` call `write()`.
    Optimizer memory is proportional to the mask's density, and the masters stay float32 under a 16-bit model.

    `lean=True` keeps no float32 copy between steps: step with `LeanOptimizer`. A float32 master then *is* the model's weight,
    a bfloat16 model's master is its weight and the 16 bits below it.

    Raises ValueError if the mask names a tensor that the model lacks or has in another shape, or chooses nothing.
    """

    def __init__(self, model: nn.Module, mask: Mask, *, lean: bool = False) -> None:
        named = dict(model.named_parameters())
        for name, chosen in mask.items():
            if name not in named or named[name].shape != chosen.shape:
                have = tuple(named[name].shape) if name in named else "no such weight"
                raise ValueError(f"the mask's {name} is {tuple(chosen.shape)}, the model has {have}.")
        counts = {name: int(mask[name].sum()) for name in mask}
        self._dense = {name: named[name] for name in mask if counts[name]}
        if not self._dense:
            raise ValueError("the mask chooses no weight at all.")
        self._requires_grad = {name: p.requires_grad for name, p in named.items()}
        self._named = named
        here = next(iter(self._dense.values())).device
        self._positions = Positions({name: mask[name] for name in self._dense}, 4 * sum(counts.values()) <= KEEP, here)
        self.lean = lean
        self.originals: dict[str, Tensor] = {}
        self.values: dict[str, nn.Parameter] = {}
        self.gradients: dict[str, Tensor] = {}
        self._masters: dict[str, Tensor] = {}  # of a lean 16-bit model: what its own weights do not tell
        self._swapped: set[str] = set()
        self._hooks = []
        for name, parameter in named.items():
            parameter.requires_grad_(name in self._dense)
        for name, parameter in self._dense.items():
            self.originals[name] = self._gather(name, self.index(name))
            start = self.originals[name].float()
            if lean:
                self._keep(name, start)
            self.values[name] = nn.Parameter(start.new_empty(0) if lean else start.clone())
            self._hooks.append(parameter.register_post_accumulate_grad_hook(self._pull(name)))

    def _gather(self, name: str, positions: Tensor) -> Tensor:
        return self._dense[name].detach().reshape(-1).index_select(0, positions)

    def _pull(self, name: str) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            assert parameter.grad is not None
            gradient = parameter.grad.reshape(-1).index_select(0, self.index(name))
            parameter.grad = None
            if self.lean:  # in the model's precision while there is one, in float32 once they are added up
                have = self.gradients.get(name)
                self.gradients[name] = gradient if have is None else have.float().add_(gradient)
                return
            value, gradient = self.values[name], gradient.float()
            value.grad = gradient if value.grad is None else value.grad.add_(gradient)

        return hook

    def _keep(self, name: str, master: Tensor) -> None:
        """Hold what the model's own weight (the master rounded) does not tell of the float32 master."""
        dtype = self._dense[name].dtype
        if dtype == torch.bfloat16:
            low = master.bfloat16().view(torch.int16).int().bitwise_left_shift_(16).neg_().add_(master.view(torch.int32))
            self._masters[name] = low.clamp_(-(1 << 15), (1 << 15) - 1).to(torch.int16)
        elif dtype != torch.float32:
            self._masters[name] = master.clone()

    def master(self, name: str, positions: Tensor | None = None) -> Tensor:
        """The tensor's salient weights (K,) in float32, as trained so far; with `index(name)` if that is at hand."""
        if not self.lean:
            return self.values[name].detach()
        positions = self.index(name) if positions is None else positions
        weights = self.originals[name] if name in self._swapped else self._gather(name, positions)
        if weights.dtype == torch.bfloat16:
            return weights.view(torch.int16).int().bitwise_left_shift_(16).add_(self._masters[name]).view(torch.float32)
        return weights if weights.dtype == torch.float32 else self._masters[name]

    def set_master(self, name: str, values: Tensor, positions: Tensor | None = None) -> None:
        """Put new float32 values (K,) of one tensor into the model; with `index(name)` if that is at hand."""
        if self.lean:
            self._keep(name, values)
        else:
            self.values[name].data.copy_(values)
        scatter(self._dense[name].detach(), self.index(name) if positions is None else positions, values)

    def parameters(self) -> list[nn.Parameter]:
        """The salient weights, one 1-D float32 parameter per tensor that has any (empty between the steps of a lean one)."""
        return list(self.values.values())

    @torch.no_grad()
    def write(self) -> None:
        """Put the present values into the model."""
        for name, value in self.values.items():
            scatter(self._dense[name].detach(), self.index(name), value.detach())

    @contextmanager
    def original(self) -> Iterator[None]:
        """The model as it was before training, for the block's duration: the frozen teacher without a second copy."""
        try:
            self._swap(list(self._dense), back=False)
            yield
        finally:
            self._swap(list(self._swapped), back=True)

    @torch.no_grad()
    def _swap(self, names: list[str], *, back: bool) -> None:
        """Change places: the trained weights into the buffer of the originals, the originals into the model; or back.

        In an order in which a stop at any line leaves the trained weights where `master` looks for them.
        """
        for name in names:
            dense, positions, here = self._dense[name].detach(), self.index(name), self.originals[name]
            there = self._gather(name, positions)
            if back:
                scatter(dense, positions, here)
                self._swapped.discard(name)
                self.originals[name] = there
            else:
                self.originals[name] = there
                self._swapped.add(name)
                scatter(dense, positions, here)

    @contextmanager
    def displaced(self, by: dict[str, Tensor]) -> Iterator[None]:
        """The model with its salient weights moved by these (K,), for the block's duration; then, bit for bit, as before."""
        here = {name: self._gather(name, self.index(name)) for name in by}
        try:
            with torch.no_grad():
                for name, values in by.items():
                    scatter(self._dense[name].detach(), self.index(name), self.master(name) + values)
            yield
        finally:
            with torch.no_grad():
                for name, values in here.items():
                    scatter(self._dense[name].detach(), self.index(name), values)

    @torch.no_grad()
    def restore(self) -> None:
        """Put the original weights back into the model for good."""
        for name, values in self.originals.items():
            scatter(self._dense[name].detach(), self.index(name), values)

    def index(self, name: str) -> Tensor:
        """Positions (K,) int64 of the tensor's salient weights in its flattened form."""
        return self._positions.of(name)

    def close(self) -> None:
        """Take the hooks off and give every parameter its `requires_grad` back; the weights stay as they are."""
        for hook in self._hooks:
            hook.remove()
        for name, parameter in self._named.items():
            parameter.requires_grad_(self._requires_grad[name])


def scatter(dense: Tensor, positions: Tensor, values: Tensor) -> None:
    """Write values (K,) at positions (K,) of the flattened tensor, in place and in any memory format."""
    values = values.to(dense.dtype)
    if dense.is_contiguous():
        dense.view(-1).index_copy_(0, positions, values)
    else:  # channels_last: index in the logical order, through a contiguous copy
        dense.copy_(dense.reshape(-1).index_copy_(0, positions, values).view(dense.shape))


class Positions:
    """Where a mask is True, on the device of the weights: as int32 where that is small, else as the mask's bits."""

    def __init__(self, mask: Mask, keep: bool, device: torch.device | str = "cpu") -> None:
        self._bits: dict[str, Tensor] = {}
        self._kept: dict[str, Tensor] = {}
        for name, chosen in mask.items():
            flat = chosen.reshape(-1).to(device)
            if keep and flat.numel() < 1 << 31:
                self._kept[name] = flat.nonzero()[:, 0].int()
            else:
                self._bits[name] = torch.from_numpy(np.packbits(flat.cpu().numpy())).to(device)

    def of(self, name: str) -> Tensor:
        """Positions (K,) int64."""
        if name in self._kept:
            return self._kept[name].long()
        bits = self._bits[name]
        if bits.device.type == "cpu":  # several times faster than torch's nonzero
            return torch.from_numpy(np.flatnonzero(np.unpackbits(bits.numpy()).view(np.bool_)))
        shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=bits.device)
        return bits[:, None].bitwise_right_shift(shifts).bitwise_and_(1).view(-1).nonzero()[:, 0]


class LeanOptimizer:
    """Any torch optimizer over lean salient weights, a few million of them in float32 at a time.

    `make` builds the optimizer of a list of parameters, as in `lambda p: torch.optim.Adam(p, 1e-4)`; it must treat parameters
    one by one (as Adam, AdamW and SGD do).
    """

    def __init__(self, salient: SalientWeights, make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> None:
        assert salient.lean
        self.salient = salient
        groups: list[list[str]] = [[]]
        size = 0
        for name, original in salient.originals.items():
            if groups[-1] and size + original.numel() > GROUP:
                groups.append([])
                size = 0
            groups[-1].append(name)
            size += original.numel()
        self._parts = [(names, make([salient.values[name] for name in names])) for names in groups]
        self.state = {name: part.state for names, part in self._parts for name in names}

    def gradient_norm(self) -> Tensor:
        """The norm over all salient weights, after adding the gradients up over the processes."""
        gradients = self.salient.gradients
        for name, original in self.salient.originals.items():
            own = gradients.get(name, torch.zeros_like(original))
            if num_processes() > 1:  # a process with one part holds 16 bits, one with several float32
                own = own.float()
            gradients[name] = sum_over_processes(own)
        return torch.linalg.vector_norm(
            torch.stack([torch.linalg.vector_norm(g, dtype=torch.float32) for g in gradients.values()])
        )

    @torch.no_grad()
    def step(self, learning_rate: float, scale: float | Tensor = 1.0) -> None:
        """One step with the gradients times `scale`; writes the model and frees the gradients."""
        salient = self.salient
        for names, part in self._parts:
            positions = {name: salient.index(name) for name in names}
            for name in names:
                value = salient.values[name]
                value.data = salient.master(name, positions[name])
                value.grad = salient.gradients.pop(name).float().mul_(scale)
            for group in part.param_groups:
                group["lr"] = learning_rate
            part.step()
            for name in names:
                value = salient.values[name]
                salient.set_master(name, value.data, positions[name])
                value.grad = None
                value.data = value.data.new_empty(0)
