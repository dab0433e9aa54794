"""Which weights differ from the base's, bit for bit, and whether all of them lie where the mask (or a claim) allows it.

Not an attack: nothing is drawn. Every part of the pipeline that holds weights is compared, text encoders and VAE too. A model
that was written in a narrower number format is compared with the base rounded to that format.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors import safe_open
from torch import Tensor

from erase.export import bits
from erase.methods.base import Config
from erase.patch import load_patch
from erase.reading import check_safetensors
from erase.saliency import Mask, load_mask
from pipelines.single_file import original_layout

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
WORDS = {"cross-attention": "unet.*attn2.*", "denoiser": "unet.*"}
# names that older versions of the libraries gave to the same tensors
RENAMED = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
HALVES = {"F16": torch.float16, "BF16": torch.bfloat16}
MOST_NAMED = 20
Weights = dict[str, Callable[[], Tensor]]


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
        return found + [f"{len(names)} tensors {what}, first {names[0]}" for what, names in kinds.items() if names]


@dataclass(frozen=True)
class Claim:
    """Which weights may differ: a mask over the denoiser's weights, and patterns of names in the whole pipeline."""

    mask: Mask | None = None
    patterns: tuple[str, ...] = ()

    def allowed(self, name: str, shape: torch.Size) -> Tensor:
        """Where the tensor may differ."""
        allowed = torch.full(shape, any(fnmatchcase(name, pattern) for pattern in self.patterns))
        if self.mask is not None and (chosen := self.mask.get(name.removeprefix("unet."))) is not None and "unet." in name:
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


@contextmanager
def opened(path: Path, loaded: Callable[[], Any], variant: str | None = None) -> Iterator[Weights]:
    """The weights of a model, each in the number format in which it is stored.

    Those of a diffusers folder are read one at a time; a single file has other names and fuses tensors, so it is `loaded`.
    """
    with ExitStack() as stack:
        found: Weights = {}
        if path.is_dir():
            for part in PARTS:
                for file in _files(path / part, variant):
                    check_safetensors(file)
                    handle = stack.enter_context(safe_open(file, "pt"))
                    found |= {_name(part, name): partial(handle.get_tensor, name) for name in handle.keys()}  # noqa: SIM118
        else:
            pipeline = loaded()
            formats = _formats(path, pipeline)
            for part in PARTS:
                for name, values in getattr(pipeline, part).state_dict().items() if getattr(pipeline, part, None) else ():
                    found[_name(part, name)] = partial(_as_stored, values, formats.get(values.data_ptr(), values.dtype))
        yield {name: values for name, values in found.items() if not name.endswith("position_ids")}


def _formats(path: Path, pipeline: Any) -> dict[int, torch.dtype]:
    """The formats of what a single file holds in half precision, by where in memory the pipeline has it that was loaded."""
    header = check_safetensors(path)
    return {
        values.data_ptr(): HALVES[header[name]["dtype"]]
        for name, parts in original_layout(pipeline).items()
        for values in parts
        if name in header and header[name]["dtype"] in HALVES
    }


def _as_stored(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values.detach().cpu().to(dtype)  # exact: it was widened when it was loaded


def _files(folder: Path, variant: str | None) -> list[Path]:
    """A part's weights: the files of the variant (without one: those with none in their names), where there are any."""
    files = sorted(folder.glob("*.safetensors"))
    wanted = [file for file in files if (f".{variant}." in file.name if variant else file.name.count(".") == 1)]
    return wanted or files


def _name(part: str, name: str) -> str:
    if part.startswith("text_encoder"):
        name = name.removeprefix("text_model.")
    for old, new in RENAMED.items() if part == "vae" else ():
        name = name.replace(old, new)
    return f"{part}.{name}"


def compare(base: Weights, model: Weights, claim: Claim, progress: Callable[[], None] = lambda: None) -> Difference:
    """The difference of two models' weights under a claim; raises ValueError for a claim that names nothing of the base."""
    for pattern in claim.patterns:
        if not any(fnmatchcase(name, pattern) for name in base):
            raise ValueError(f"the claim {pattern!r} names no tensor of the base (its names begin as in {min(base)}).")
    tally = Tally()
    for name in sorted(base.keys() & model.keys()):
        tally.add(name, base[name](), model[name](), claim)
        progress()
    return tally.difference(tuple(sorted(model.keys() - base.keys())), tuple(sorted(base.keys() - model.keys())))


class Tally:
    """What is counted tensor by tensor."""

    def __init__(self) -> None:
        self.blocks: dict[str, dict[str, int]] = {}
        self.outside: dict[str, int] = {}
        self.retyped: dict[str, int] = {}
        self.names: dict[str, list[str]] = {"reshaped": [], "not_finite": []}
        self.example = ""

    def add(self, name: str, before: Tensor, after: Tensor, claim: Claim) -> None:
        """Compare one tensor."""
        if before.dtype != after.dtype:
            change = f"{str(before.dtype)[6:]} -> {str(after.dtype)[6:]}"
            self.retyped[change] = self.retyped.get(change, 0) + 1
        if not torch.isfinite(after).all():
            self.names["not_finite"].append(name)
        if before.numel() == after.numel() and before.squeeze().shape == after.squeeze().shape:
            after = after.view(before.shape)  # a linear layer that was a 1 x 1 convolution
        if before.shape != after.shape:
            self.names["reshaped"].append(name)
            return
        if before.dtype != after.dtype:
            widest = (
                after.dtype if after.dtype.itemsize <= before.dtype.itemsize else torch.promote_types(before.dtype, after.dtype)
            )
            before, after = before.to(widest), after.to(widest)
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

    def difference(self, added: tuple[str, ...], removed: tuple[str, ...]) -> Difference:
        """Everything counted."""
        total = {key: sum(block[key] for block in self.blocks.values()) for key in ("weights", "allowed", *CHANGED)}
        return Difference(
            num_weights=total["weights"],
            num_allowed=total["allowed"],
            changed_inside=total["changed_inside"],
            changed_outside=total["changed_outside"],
            outside=dict(list(self.outside.items())[:MOST_NAMED]),
            example=self.example,
            added=added,
            removed=removed,
            reshaped=tuple(self.names["reshaped"]),
            not_finite=tuple(self.names["not_finite"]),
            retyped=self.retyped,
            blocks=self.blocks,
        )


CHANGED = ("changed_inside", "changed_outside")


def _told(name: str, wrong: Tensor, before: Tensor, after: Tensor) -> str:
    at = tuple(wrong.nonzero()[0].tolist())
    return f"{name}[{', '.join(map(str, at))}]: {before[at].item():.9g} -> {after[at].item():.9g}"


def _block(name: str) -> str:
    """`unet.down_blocks.0`, `unet.mid_block`, `vae.decoder`, `text_encoder.encoder`."""
    part, *rest = name.split(".")
    return ".".join([part, rest[0], rest[1]]) if len(rest) > 1 and rest[1].isdigit() else f"{part}.{rest[0]}"
