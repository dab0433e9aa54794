"""The forgetting methods: one file each (its Config and its loss), one line here."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from erase.methods import salun
from erase.methods.base import Step

MethodConfig = salun.SalUn

LOSSES: dict[str, Callable[[Any, Step], tuple[Tensor, dict[str, float]]]] = {
    "salun": salun.loss,
}
