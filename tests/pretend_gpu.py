"""A graphics card that is not there: CPU tensors that are held to a GPU's rules, so that a wrong device is found without one.

Within `pretend("cuda:0")` what is brought to that device is a tensor of its own (on the CPU, with the same values) that says it
is there. An operation that mixes devices in a way that no GPU allows raises what torch would raise; so do `numpy()` of such a
tensor, and float64 on `mps`. Values are those of the CPU: what runs under it must give the same bits as without.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_leaves

GETTERS: dict[Any, str] = {
    getattr(Tensor, name).__get__: name for name in ("device", "is_cuda", "is_mps", "is_cpu", "grad", "data")
}
# operations that move values between devices, or look at metadata alone
ACROSS = {
    Tensor.copy_,
    Tensor.set_,
    Tensor.data.__set__,
    Tensor.__repr__,
    Tensor.is_set_to,
    Tensor.untyped_storage,
    torch._has_compatible_shallow_copy_type,
}  # type: ignore[attr-defined]
# an index may lie on the CPU
INDEXING = {Tensor.__getitem__, torch.Tensor.index}


def place_of(tensor: Tensor) -> torch.device:
    """Where a tensor pretends to be; one that does not is where it is."""
    real = torch._C._TensorBase.device.__get__(tensor)  # type: ignore[attr-defined]
    if real.type != "cpu" or tensor.layout != torch.strided:
        return real
    place: torch.device = getattr(torch._C.TensorBase.untyped_storage(tensor), "pretended", real)
    return place


def put(tensor: Tensor, place: torch.device) -> Tensor:
    """The tensor, said to be at the place; its memory must be its own."""
    storage = torch._C.TensorBase.untyped_storage(tensor)
    if place.type != "cpu":
        if place.type == "mps" and tensor.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")
        storage.pretended = place  # type: ignore[attr-defined]
    return tensor


class PretendDevice(TorchFunctionMode):
    """The rules; `device` is the only accelerator there is."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.place = torch.device(device)
        self.seen = 0
        """Operations that were done there."""

    def _device(self, asked: Any) -> torch.device:
        place = torch.device(asked) if not isinstance(asked, int) else self.place
        if place.type in ("cpu", "meta"):
            return place
        if place.type != self.place.type or place.index not in (None, self.place.index):
            raise RuntimeError(f"there is no {place} here")
        return self.place

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in GETTERS:
            return self._got(GETTERS[func], args[0], func)
        if func in (Tensor.to, Tensor.cpu, Tensor.cuda):
            return self._moved(func, args, kwargs)
        if func is Tensor.numpy or func is Tensor.__array__:
            if place_of(args[0]).type != "cpu":
                raise TypeError(f"can't convert {place_of(args[0])} device type tensor to numpy.")
            return func(*args, **kwargs)
        if func in (Tensor.register_hook, Tensor.register_post_accumulate_grad_hook):
            tensor, hook = args

            def held(*given: Any) -> Any:
                with self:
                    return hook(*given)

            return func(tensor, held)
        if func is torch.autograd.grad:
            found = func(*args, **kwargs)
            inputs = args[1] if len(args) > 1 else kwargs["inputs"]
            for gradient, one in zip(found, [inputs] if isinstance(inputs, Tensor) else inputs, strict=True):
                put(gradient, place_of(one))
            return found
        if (asked := kwargs.get("device")) is None:
            place = self._checked(func, args, kwargs)
        elif (place := self._device(asked)).type != "meta":
            kwargs["device"] = "cpu"
        return self._marked(func(*args, **kwargs), place)

    def _got(self, name: str, tensor: Tensor, func: Callable[..., Any]) -> Any:
        place = place_of(tensor)
        if name == "device":
            return place
        if name.startswith("is_"):
            return place.type == name.removeprefix("is_")
        found = func(tensor)
        if name == "grad" and found is not None:
            put(found, place)
        return found

    def _moved(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        tensor, *rest = args
        place, dtype, layout, copy = place_of(tensor), tensor.dtype, None, kwargs.pop("copy", False)
        if func is Tensor.to and rest and isinstance(rest[0], Tensor):
            target, dtype = place_of(rest[0]), rest[0].dtype
        elif func is Tensor.to:
            asked, of, _, layout = torch._C._nn._parse_to(*rest[:3], **kwargs)
            target, dtype = self._device(asked) if asked is not None else place, of or dtype
            copy = copy or (len(rest) > 3 and rest[3])
        else:
            target = self._device("cpu" if func is Tensor.cpu else self.place)
        if "meta" in (target.type, place.type):
            return func(*args, **kwargs)
        if target.type == "mps" and dtype == torch.float64:
            put(torch.empty(0, dtype=dtype), target)  # refuses
        moved = tensor.to(dtype, memory_format=layout or torch.preserve_format)
        if copy or (target != place and moved.data_ptr() == tensor.data_ptr()):
            moved = moved.clone()
        return moved if moved is tensor else put(moved, target)

    def _checked(self, func: Any, args: Any, kwargs: Any) -> torch.device:
        """Where the operation is done; raises RuntimeError if its tensors lie on several devices."""
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        places = [place_of(x) for x in tensors]
        there = next((place for place in places if place.type != "cpu"), torch.device("cpu"))
        if there.type == "cpu":
            return there
        self.seen += 1
        if func in ACROSS:
            return places[0]
        if func in INDEXING:
            if places[0].type == "cpu" and any(x.ndim for x in tensors[1:]):  # a number on the card is read as an index
                raise RuntimeError(f"indices should be either on cpu or on the same device as the indexed tensor (cpu): {func}")
            return places[0]
        if func is Tensor.__setitem__:
            tensors, places = tensors[:1] + tensors[-1:], places[:1] + places[-1:]
            if not any(isinstance(x, Tensor) for x in tree_flatten(args[1])[0]):
                return places[0]
        mixed = [x for x, place in zip(tensors, places, strict=True) if place.type == "cpu" and x.ndim]
        if mixed:
            name = getattr(func, "__name__", str(func))
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, {there} and cpu ({name})"
            )
        return there

    def _marked(self, result: Any, place: torch.device) -> Any:
        if place.type not in ("cpu", "meta"):
            for x in tree_leaves(result):
                if isinstance(x, Tensor):
                    put(x, place)
        return result


@contextmanager
def pretend(device: str) -> Iterator[PretendDevice]:
    """The block with that device at hand."""
    with PretendDevice(device) as mode:
        yield mode
