"""The forgetting methods: one file each (its Config, its rows and its loss), one line here."""

from types import ModuleType

from erase.methods import salun

MethodConfig = salun.SalUn

METHODS: dict[str, ModuleType] = {
    "salun": salun,
}
