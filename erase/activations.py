"""What the backward pass holds: counted while it works, or foretold on a denoiser without memory."""

import copy
import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from pipelines.family import Family


def saved_bytes(work: Callable[[], object], model: nn.Module) -> int:
    """The most bytes that autograd held at a time for the backward pass while the work ran; weights do not count.

    With gradient checkpointing this sees what is recomputed, too. Tensors may be without memory (`meta`).
    """
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    holders: dict[int, int] = {}
    live = largest = 0

    class Holder:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor

    def drop(pointer: int, size: int) -> None:
        nonlocal live
        holders[pointer] -= 1
        if not holders[pointer]:
            del holders[pointer]
            live -= size

    def pack(tensor: Tensor) -> Holder:
        nonlocal live, largest
        holder, storage = Holder(tensor), tensor.untyped_storage()
        pointer, size = storage._cdata, storage.nbytes()  # on `meta`, too, one for each storage
        if pointer not in own:
            live += 0 if pointer in holders else size
            holders[pointer] = holders.get(pointer, 0) + 1
            largest = max(largest, live)
            weakref.finalize(holder, drop, pointer, size)
        return holder

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda holder: holder.tensor):
        work()
    return largest


def activation_bytes(family: Family, prompt: str, checkpointed: bool) -> int:
    """Bytes of activations that training holds for a row, counted on a denoiser without memory: nothing is computed."""
    shadow: Any = copy.copy(family)
    shadow.pipeline = copy.copy(shadow.pipeline)
    unet = shadow.pipeline.unet
    with torch.device("meta"):
        shadow.pipeline.unet = type(unet).from_config(unet.config).to(unet.dtype).eval()
    if checkpointed:
        shadow.pipeline.unet.enable_gradient_checkpointing(_fused_checkpoint)
    size = unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    latents, timesteps = torch.zeros(1, unet.config.in_channels, height, width), torch.zeros(1, dtype=torch.long)
    conditioning = family.encode_prompts([prompt])

    def step() -> None:
        with _Fused():
            loss = shadow.predict(latents, timesteps, conditioning).float().square().mean()
        loss.backward()

    return saved_bytes(step, shadow.denoiser)


class _Fused(TorchFunctionMode):
    """Attention without memory holds what a card's kernel does: no matrix of weights, for which `meta` has no kernel."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return _Attention.apply(*args[:3])
        return func(*args, **(kwargs or {}))


def _fused_checkpoint(module: nn.Module, *inputs: Any) -> Any:
    """Checkpoint a module; what the backward pass recomputes is under the mode, too."""

    def fused(*given: Any) -> Any:
        with _Fused():
            return module(*given)

    return checkpoint(fused, *inputs, use_reentrant=False)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        attended = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, attended, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return attended

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(one) for one in ctx.saved_tensors[:3])
