"""The forgetting methods: one file each (its Config and its part of `Method`), one line here."""

from typing import Annotated

from pydantic import Field

from erase.methods import (
    concept_ablation,
    erasediff,
    esd,
    forget_me_not,
    gradient_ascent,
    munba,
    retrain,
    salun,
    scissorhands,
    uce,
)
from erase.methods.base import Method

MethodConfig = Annotated[
    salun.SalUn
    | gradient_ascent.GradientAscent
    | esd.Esd
    | concept_ablation.ConceptAblation
    | uce.Uce
    | forget_me_not.ForgetMeNot
    | erasediff.EraseDiff
    | scissorhands.Scissorhands
    | munba.Munba
    | retrain.Retrain,
    Field(discriminator="name"),
]

METHODS: dict[str, Method] = {
    "salun": salun.METHOD,
    "gradient_ascent": gradient_ascent.METHOD,
    "esd": esd.METHOD,
    "concept_ablation": concept_ablation.METHOD,
    "uce": uce.METHOD,
    "forget_me_not": forget_me_not.METHOD,
    "erasediff": erasediff.METHOD,
    "scissorhands": scissorhands.METHOD,
    "munba": munba.METHOD,
    "retrain": retrain.METHOD,
}


def method_lines() -> list[str]:
    """One line per method: its name, what it does, its paper."""
    return [f"{name:<17} {method.line} ({method.paper})" for name, method in METHODS.items()]
