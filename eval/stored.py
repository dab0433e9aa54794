"""The weights of a base and of a model made from it as their files hold them, by the same names, one at a time.

Of a folder they are those that the libraries load, of a single file every tensor in it; each in its own number format.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from pipelines.check import safetensors_header, weight_files
from pipelines.single_file import original_layout

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
# names that older versions of the libraries gave to the same tensors
RENAMED = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
FORMATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "BOOL", "I8", "U8", "I16", "I32", "I64")
# what published single files hold and no picture is made with: the schedule's constants, what training counted and its losses,
# the head of contrastive training, and the last layer of 2.x's text encoder, whose output is not asked for
UNUSED = (
    "betas",
    "alphas_cumprod*",
    "sqrt_*",
    "log_one_minus_alphas_cumprod",
    "posterior_*",
    "logvar",
    "denoiser.sigmas",
    "model_ema.decay",
    "model_ema.num_updates",
    "first_stage_model.loss.*",
    "*.logit_scale",
    "cond_stage_model.model.text_projection",
    "cond_stage_model.model.transformer.resblocks.23.*",
)
Weights = dict[str, Callable[[], Tensor]]


@dataclass(frozen=True)
class Pair:
    """The weights of a base and of a model made from it."""

    base: Weights
    model: Weights
    beside: dict[str, Weights]
    """By file, what lies in the model's folder beside the files that are loaded: others may load it."""


@contextmanager
def opened(
    base: Path, model: Path, loaded: Callable[[], Any], variants: tuple[str | None, str | None] = (None, None)
) -> Iterator[Pair]:
    """The weights of both while their files are open; where one is a single file, its names follow from the `loaded` base.

    A single file's tensors that the pipeline has no place for keep their names. Raises ValueError for a file that is none, for
    one tensor under two names, and for number formats that are not compared.
    """
    with ExitStack() as stack:
        places = _places(loaded()) if base.is_file() or model.is_file() else {}
        sides: list[Weights] = []
        for path, variant in zip((base, model), variants, strict=True):
            sides.append(_of_folder(path, variant, stack) if path.is_dir() else _of_file(path, places, stack))
        before, after = sides
        yield Pair(
            {name: values for name, values in before.items() if name in after or _is_part(name)},
            {name: values for name, values in after.items() if name in before or _is_part(name) or not _is_unused(name)},
            _beside(model, variants[1], stack) if model.is_dir() else {},
        )


def _is_part(name: str) -> bool:
    return name.partition(".")[0] in PARTS


def _is_unused(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in UNUSED)


def _of_folder(folder: Path, variant: str | None, stack: ExitStack) -> Weights:
    found: Weights = {}
    for part in PARTS:
        for file in weight_files(folder / part, variant) if (folder / part).is_dir() else ():
            for name, values in _tensors(file, stack).items():
                _put(found, _name(part, name), values, file)
    return found


def _beside(folder: Path, variant: str | None, stack: ExitStack) -> dict[str, Weights]:
    found: dict[str, Weights] = {}
    for part in filter(lambda part: (folder / part).is_dir(), PARTS):
        for file in sorted({*(folder / part).glob("*.safetensors")} - {*weight_files(folder / part, variant)}):
            held = found.setdefault(f"{part}/{file.name}", {})
            for name, values in _tensors(file, stack).items():
                _put(held, _name(part, name), values, file)
    return found


@dataclass(frozen=True)
class Place:
    """Where a tensor of the pipeline stands in a tensor of a single file."""

    name: str
    rows: slice
    turned: bool
    """Whether it is the transposed."""


def _places(pipeline: Any) -> dict[str, list[Place]]:
    """By the names of the original layout, what of the pipeline stands there; told by where in memory it is."""
    named = {
        values.data_ptr(): _name(part, name)
        for part in PARTS
        for name, values in (getattr(pipeline, part).state_dict().items() if getattr(pipeline, part, None) else ())
    }
    places: dict[str, list[Place]] = {}
    for original, parts in original_layout(pipeline).items():
        begin, places[original] = 0, []
        for values in (values for values in parts if values.numel()):
            end = begin + values.shape[0]
            rows = slice(begin, None if values is parts[-1] else end)  # the last takes what may be too much
            turned = values.ndim == 2 and not values.is_contiguous()
            places[original].append(Place(named[values.data_ptr()], rows, turned))
            begin = end
    return places


def _of_file(path: Path, places: dict[str, list[Place]], stack: ExitStack) -> Weights:
    found: Weights = {}
    for original, values in _tensors(path, stack).items():
        for place in places.get(original, [Place(original, slice(None), False)]):
            _put(found, place.name, partial(_piece, values, place), path)
    return found


def _piece(whole: Callable[[], Tensor], place: Place) -> Tensor:
    values = whole()
    values = values[place.rows] if values.ndim else values
    return values.T if place.turned and values.ndim == 2 else values


def _tensors(path: Path, stack: ExitStack) -> Weights:
    """What a file holds, by the names in it; not `position_ids`, which are 0, 1, 2 ... and made anew by every reader."""
    for name, entry in safetensors_header(path).items():
        if entry["dtype"] not in FORMATS:
            raise ValueError(f"{path} holds {name} as {entry['dtype']}, which is not compared: only {', '.join(FORMATS)} are.")
    handle = stack.enter_context(safe_open(path, "pt"))
    names = [name for name in handle.keys() if name.split(".")[-1] != "position_ids"]  # noqa: SIM118
    return {name: partial(handle.get_tensor, name) for name in names}


def _put(found: Weights, name: str, values: Callable[[], Tensor], file: Path) -> None:
    if name in found:
        raise ValueError(
            f"{file} holds {name}, which is there already, under another name or in another file: which one counts?"
        )
    found[name] = values


def _name(part: str, name: str) -> str:
    if part.startswith("text_encoder"):
        name = name.removeprefix("text_model.")
    for old, new in RENAMED.items() if part == "vae" else ():
        name = name.replace(old, new)
    return f"{part}.{name}"
