"""The unlearning methods of classifiers: each family a file (Config and function), one line here."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import nn

from erase.classification.loop import forget_mask, training_mode
from erase.classification.methods import boundary, finetune, fisher, influence, relabel
from erase.classification.methods.base import ClassifierMethod, Task
from erase.classification.split import Loader
from erase.saliency import Mask
from erase.salient import SalientWeights

MethodConfig = Annotated[
    finetune.Retrain
    | finetune.FineTune
    | finetune.L1Sparse
    | finetune.GradientAscent
    | relabel.RandomLabel
    | relabel.SalUn
    | influence.Influence
    | boundary.BoundaryShrink
    | boundary.BoundaryExpand
    | fisher.Fisher,
    Field(discriminator="name"),
]

METHODS: dict[str, Callable[[Any, Task], None]] = {
    "retrain": finetune.retrain,
    "ft": finetune.finetune,
    "l1_sparse": finetune.finetune,
    "gradient_ascent": finetune.gradient_ascent,
    "random_label": relabel.random_label,
    "influence": influence.influence,
    "boundary_shrink": boundary.boundary_shrink,
    "boundary_expand": boundary.boundary_expand,
    "fisher": fisher.fisher,
    "salun": relabel.random_label,
}
SECOND_ORDER = ("influence", "fisher")
"""Methods that go over the rows again and again for one matrix: their pictures must be the same each time, not augmented."""


@dataclass(frozen=True)
class Unlearned:
    """What unlearning took and what it was allowed to change."""

    seconds: float
    mask: Mask | None


def method_config(values: dict[str, Any]) -> ClassifierMethod:
    """The method's config; raises ValueError with one sentence per mistake."""
    if values.get("name") not in METHODS:
        raise ValueError(f"there is no method {values.get('name')!r}: choose one of {', '.join(METHODS)}.")
    adapter: TypeAdapter[Any] = TypeAdapter(MethodConfig)
    try:
        return adapter.validate_python(values)
    except ValidationError as error:
        sentences = [f"{'.'.join(str(p) for p in e['loc'][1:])} is {e['input']!r}: {e['msg']}" for e in error.errors()]
        raise ValueError(f"method {values['name']}: {'; '.join(sentences)}.") from error


def unlearn(
    model: nn.Module,
    method: ClassifierMethod,
    *,
    forget: Loader,
    retain: Loader,
    mask: Mask | None = None,
    fresh: Callable[[], nn.Module] | None = None,
    seed: int = 0,
) -> Unlearned:
    """Make the model forget, in place: any `nn.Module` that maps inputs to logits, any loaders of (inputs, labels).

    With a mask, or a density to make one from the forget set, weights outside it stay as they are bit for bit. `fresh` makes an
    untrained model (`retrain` alone needs it). The seconds include making the mask.
    """
    began = time.monotonic()
    if len(forget) == 0 or len(retain) == 0:
        raise ValueError(f"the {'forget' if len(forget) == 0 else 'retain'} set is empty.")
    if mask is None and method.density is not None:
        mask = forget_mask(model, forget, method.density)
    salient = SalientWeights(model, mask) if mask is not None else None
    generator = torch.Generator().manual_seed(seed)
    try:
        with training_mode(model, method.batchnorm):
            METHODS[method.name](method, Task(model, forget, retain, salient, generator, fresh))  # type: ignore[attr-defined]
    finally:
        if salient:
            salient.close()
    return Unlearned(time.monotonic() - began, mask)
