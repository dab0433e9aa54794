"""Imagenette's ten classes, as the labels of a model that has no list of its own: SalUn relabels among them."""

from typing import Any

from erase.concepts import same_name
from erase.templates import names_any
from eval.suites import IMAGENETTE

# In the data set's order, that of the WordNet ids; the names of peoples have a capital there.
CLASSES = tuple(name.capitalize() if name.startswith(("english ", "french ")) else name for name in IMAGENETTE)


def other_classes(name: str, erased: tuple[str, ...]) -> tuple[str, ...]:
    """The classes behind this one and, from the first on, before it, but for those erased; none if it is no class."""
    own = next((k for k, one in enumerate(CLASSES) if same_name(one, name)), None)
    if own is None:
        return ()
    return tuple(one for one in (*CLASSES[own + 1 :], *CLASSES[:own]) if not names_any((name, *erased), one))


def next_class(name: str, erased: tuple[str, ...]) -> str:
    """The class that the released code puts in this one's place, (i + 1) % 10; raises ValueError if there is none."""
    others = other_classes(name, erased)
    if not others:
        raise ValueError(
            f"method.anchor 'next' works for this model only among Imagenette's ten classes, and {name!r} is none of them, or "
            "all others are erased too: give a name, or 'nearest'."
        )
    return others[0]


def among_classes(values: dict[str, Any], shipped: bool) -> dict[str, Any]:
    """The settings with each concept that is a class relabelled among the other classes, which are protected beside it.

    Prompts given by hand say themselves what the concept becomes; neighbours in a file of one's own stay (not `shipped`).
    """
    given, method, prompts = values.get("concept"), values["method"], values.get("prompts") or {}
    names = tuple(map(str, given)) if isinstance(given, (list, tuple)) else (str(given),)
    each = prompts.get("each") or {} if isinstance(prompts, dict) else None
    if not isinstance(each, dict) or not all(isinstance(own, dict) for own in each.values()):
        return values  # which the config refuses in a sentence
    anchors, neighbours = [], {}
    for name in names:
        own = prompts if len(names) == 1 else each.get(name, {})
        others = () if own.get("forget") else other_classes(name, names)
        anchors.append("next" if others and method["relabel"] == "concept_remap" else method["anchor"])
        if others and (shipped or not (own.get("neighbours") or prompts.get("neighbours"))):
            neighbours[name] = own | {"neighbours": list(others)}
    if len(names) == 1:
        prompts = neighbours.get(names[0], prompts)
    elif neighbours:
        prompts = prompts | {"each": each | neighbours}
    method = method | {"anchor": anchors if len(set(anchors)) > 1 else anchors[0]}
    return values | {"method": method} | ({"prompts": prompts} if prompts else {})
