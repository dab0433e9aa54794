"""Which weights differ from the base's, bit for bit, and whether all of them lie where the mask (or a claim) allows it.

Not an attack: nothing is drawn. Every part of the pipeline that holds weights is compared, text encoders and VAE too. What is
in another number format is compared with the base's values in that format.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from erase.export import bits
from erase.methods.base import Config
from erase.patch import load_patch
from erase.saliency import Mask, load_mask
from eval.stored import Weights

WORDS = {"cross-attention": "unet.*attn2.*", "denoiser": "unet.*"}
MOST_NAMED = 20


class Difference(Config):
    """In what a model's weights differ from its base's."""

    num_weights: int
    num_allowed: int
    """Weights that the mask or the claim allows to differ."""
    changed_inside: int
    changed_outside: int
    outside: dict[str, int] = Field(default_factory=dict)
    """Weights that differ and may not, by tensor (the first of them)."""
    example: str = ""
    """The first of those weights, with its value before and after."""
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()
    not_finite: tuple[str, ...] = ()
    renumbered: tuple[str, ...] = ()
    """Tensors of whole numbers where the base has others, or the reverse."""
    beside: tuple[str, ...] = ()
    """Weight files beside those that are loaded which hold other values than these."""
    retyped: dict[str, int] = Field(default_factory=dict)
    """Tensors in another number format, by `from -> to`; no fault in itself."""
    blocks: dict[str, dict[str, int]] = Field(default_factory=dict)
    """Per block of the pipeline: weights, allowed, changed_inside, changed_outside."""

    @property
    def open(self) -> bool:
        """Whether every weight of the denoiser may differ, so that the claim says next to nothing."""
        return all(block["allowed"] == block["weights"] for name, block in self.blocks.items() if name.startswith("unet."))

    @property
    def faults(self) -> list[str]:
        """What the claim does not allow, a sentence's part each."""
        found = []
        if self.changed_outside:
            found.append(f"{self.changed_outside:,} weights changed outside the mask, first {self.example}")
        kinds = {"added": self.added, "removed": self.removed, "reshaped": self.reshaped, "not finite": self.not_finite}
        kinds["of another kind of number"] = self.renumbered
        found += [f"{len(names)} tensors {what}, first {names[0]}" for what, names in kinds.items() if names]
        if self.beside:
            found.append(f"{len(self.beside)} files beside the loaded weights hold others, first {self.beside[0]}")
        return found

    @property
    def broken(self) -> bool:
        """Whether the weights make no model that draws, so that nothing but this can be asked of it."""
        return bool(self.removed or self.reshaped or self.not_finite or self.renumbered)


@dataclass(frozen=True)
class Claim:
    """Which weights may differ: a mask over the denoiser's weights, and patterns of names in the whole pipeline."""

    mask: Mask | None = None
    patterns: tuple[str, ...] = ()

    def allowed(self, name: str, shape: torch.Size) -> Tensor:
        """Where the tensor may differ."""
        allowed = torch.full(shape, any(fnmatchcase(name, pattern) for pattern in self.patterns))
        part, _, rest = name.partition(".")
        if self.mask is not None and part == "unet" and (chosen := self.mask.get(rest)) is not None:
            if chosen.shape != shape:
                raise ValueError(f"the mask is for another model: its {name} is {tuple(chosen.shape)}, here {tuple(shape)}.")
            allowed |= chosen
        return allowed


def read_claim(texts: list[str]) -> Claim | None:
    """The claim that files (masks or patches) and patterns of tensor names make together; None without any."""
    mask: Mask | None = None
    patterns = []
    for text in texts:
        if text.endswith(".safetensors"):
            found = _mask_in(Path(text))
            both = found | (mask or {})
            mask = {name: both[name] | found.get(name, both[name]) for name in both}
        else:
            patterns.append(WORDS.get(text, text))
    return Claim(mask, tuple(patterns)) if texts else None


def _mask_in(path: Path) -> Mask:
    try:
        return load_mask(path)[0]
    except ValueError as error:
        try:
            patch = load_patch(path)
        except ValueError:
            raise ValueError(
                f"the claim {path} is neither a mask nor a patch ({error}); give mask.safetensors, patch.safetensors, "
                "`cross-attention`, or a pattern of tensor names such as 'unet.*attn2*'."
            ) from error
    mask = {}
    for name, shape in patch.shapes.items():
        flat = torch.zeros(torch.Size(shape).numel(), dtype=torch.bool)
        flat[patch.positions[name]] = True
        mask[name] = flat.view(shape)
    return mask


def compare(
    base: Weights,
    model: Weights,
    claim: Claim,
    progress: Callable[[], None] = lambda: None,
    beside: Mapping[str, Weights] | None = None,
) -> Difference:
    """The difference of two models' weights under a claim; `beside`: what other files of the model's folder hold.

    Raises ValueError for a base without weights and for a claim that names nothing of the base.
    """
    if not base:
        raise ValueError("the base has no weights.")
    for pattern in claim.patterns:
        if not any(fnmatchcase(name, pattern) for name in base):
            raise ValueError(f"the claim {pattern!r} names no tensor of the base (its names begin as in {min(base)}).")
    tally = Tally()
    for name in sorted(base.keys() & model.keys()):
        tally.add(name, base[name](), model[name](), claim)
        progress()
    others = [file for file, weights in (beside or {}).items() if not _holds(model, weights)]
    return tally.difference(sorted(model.keys() - base.keys()), sorted(base.keys() - model.keys()), others)


def _holds(model: Weights, others: Weights) -> bool:
    """Whether other weights are the model's, in the narrower number format of the two."""
    return others.keys() <= model.keys() and all(_agree(model[name](), values()) for name, values in others.items())


def _agree(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.is_floating_point() != other.is_floating_point():
        return False
    narrow, wide = sorted((one, other), key=lambda values: values.dtype.itemsize)
    return torch.equal(bits(wide.to(narrow.dtype)), bits(narrow))


class Tally:
    """What is counted tensor by tensor."""

    def __init__(self) -> None:
        self.blocks: dict[str, dict[str, int]] = {}
        self.outside: dict[str, int] = {}
        self.retyped: dict[str, int] = {}
        self.names: dict[str, list[str]] = {"reshaped": [], "not_finite": [], "renumbered": []}
        self.example = ""

    def add(self, name: str, before: Tensor, after: Tensor, claim: Claim) -> None:
        """Compare one tensor."""
        if before.dtype != after.dtype:
            change = f"{str(before.dtype)[6:]} -> {str(after.dtype)[6:]}"
            self.retyped[change] = self.retyped.get(change, 0) + 1
        if not torch.isfinite(after).all():
            self.names["not_finite"].append(name)
        if name.startswith("vae.") and ".attentions." in name and before.squeeze().shape == after.squeeze().shape:
            after = after.reshape(before.shape)  # a linear layer that was a 1 x 1 convolution
        if before.shape != after.shape or before.is_floating_point() != after.is_floating_point():
            self.names["reshaped" if before.shape != after.shape else "renumbered"].append(name)
            return
        before = before.to(after.dtype)  # rounded, or exactly as it was in a wider format
        changed, allowed = bits(before) != bits(after), claim.allowed(name, before.shape)
        wrong = changed & ~allowed
        if num := int(wrong.sum()):
            self.outside[name] = num
            self.example = self.example or _told(name, wrong, before, after)
        counts = {"weights": before.numel(), "allowed": int(allowed.sum())}
        counts |= {"changed_inside": int((changed & allowed).sum()), "changed_outside": num}
        block = self.blocks.setdefault(_block(name), dict.fromkeys(counts, 0))
        for key, value in counts.items():
            block[key] += value

    def difference(self, added: list[str], removed: list[str], beside: list[str]) -> Difference:
        """Everything counted."""
        total = {key: sum(block[key] for block in self.blocks.values()) for key in ("weights", "allowed", *CHANGED)}
        return Difference(
            num_weights=total["weights"],
            num_allowed=total["allowed"],
            changed_inside=total["changed_inside"],
            changed_outside=total["changed_outside"],
            outside=dict(list(self.outside.items())[:MOST_NAMED]),
            example=self.example,
            added=tuple(added),
            removed=tuple(removed),
            reshaped=tuple(self.names["reshaped"]),
            not_finite=tuple(self.names["not_finite"]),
            renumbered=tuple(self.names["renumbered"]),
            beside=tuple(beside),
            retyped=self.retyped,
            blocks=self.blocks,
        )


CHANGED = ("changed_inside", "changed_outside")


def _told(name: str, wrong: Tensor, before: Tensor, after: Tensor) -> str:
    at, digits = tuple(wrong.nonzero()[0].tolist()), 17 if after.dtype == torch.float64 else 9
    return f"{name}[{', '.join(map(str, at))}]: {before[at].item():.{digits}g} -> {after[at].item():.{digits}g}"


def _block(name: str) -> str:
    """`unet.down_blocks.0`, `unet.mid_block`, `vae.decoder`, `text_encoder.encoder`."""
    part, *rest = name.split(".")
    return ".".join([part, *rest[: 2 if len(rest) > 1 and rest[1].isdigit() else 1]])
