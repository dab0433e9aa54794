"""What a plan refuses, in a sentence each: prompts and names that contradict one another, settings that mean nothing."""

from erase.concepts import Concept, names_within
from erase.config import ConceptPrompts, RunConfig
from erase.templates import names_any


def check_prompts(config: RunConfig) -> None:
    """Raise ValueError for prompts given in part, for the wrong number of concepts, or that contradict themselves."""
    if len(config.concepts) > 1 and (config.prompts.forget or config.prompts.becomes):
        raise ValueError(f"prompts.forget is for one concept; with several give prompts.each.{config.concepts[0]}.forget.")
    if len(config.concepts) > 1 and config.prompts.synonyms:
        raise ValueError(f"prompts.synonyms is for one concept; with several give prompts.each.{config.concepts[0]}.synonyms.")
    if strange := [name for name in config.prompts.each if name not in config.concepts]:
        raise ValueError(f"prompts.each.{strange[0]} matches none of the concepts ({', '.join(config.concepts)}).")
    for prefix, given in [("prompts", config.prompts), *((f"prompts.each.{k}", v) for k, v in config.prompts.each.items())]:
        if given.forget and not (given.becomes and given.retain):
            raise ValueError(f"{prefix}.forget is given: {prefix}.becomes and {prefix}.retain are needed too.")
        if given.becomes and not given.forget:
            raise ValueError(f"{prefix}.becomes is given without {prefix}.forget, which names what it replaces.")
        if given.retain and not given.forget and not config.data.retain_images:
            raise ValueError(
                f"{prefix}.retain is given without {prefix}.forget: give all three prompts, or {prefix}.neighbours to name "
                "what is protected."
            )
        if given.forget and given.neighbours:
            raise ValueError(
                f"{prefix}.neighbours has no effect beside {prefix}.forget: name them in the prompts of {prefix}.retain."
            )
        if given.forget and given.synonyms:
            raise ValueError(
                f"{prefix}.synonyms has no effect beside {prefix}.forget: give prompts with them in {prefix}.forget."
            )
        _check_texts(prefix, given)


def check_method(config: RunConfig) -> None:
    """Raise ValueError for a method's settings that leave it without one of its losses."""
    if getattr(config.method, "teacher", None) == "moving" and getattr(config.method, "retain", None) == "distill":
        raise ValueError(
            "method.teacher=moving with method.retain=distill keeps nothing: the target would be what the model predicts "
            "itself, whatever that is; give method.retain=denoise too."
        )


def _check_texts(prefix: str, given: ConceptPrompts) -> None:
    if set(given.forget) & set(given.becomes):
        raise ValueError(f"a prompt in {prefix}.becomes asks for the concept itself (it is in {prefix}.forget too).")
    if both := set(given.forget) & set(given.retain):
        raise ValueError(f"the prompt {min(both)!r} is in {prefix}.forget and in {prefix}.retain: it cannot be both.")
    if any(not text.strip() for texts in given.model_dump(exclude={"kind", "each"}).values() for text in texts):
        raise ValueError(f"{prefix} holds an empty text.")


def refuse_overlap(outer: str, inner: str, same: bool, within: bool) -> None:
    """Raise ValueError if two concepts are one, or one lies within the other."""
    if same:
        raise ValueError(f"the concept {outer!r} is given twice" + (f", also as {inner!r}." if inner != outer else "."))
    if within:
        raise ValueError(f"{inner!r} is part of {outer!r}, which is erased too: leave out one of them.")


def refuse_open_settings(config: RunConfig, concepts: list[Concept]) -> None:
    """Raise ValueError for settings that mean nothing where the vocabulary is fixed."""
    if config.prompts.each or config.prompts.neighbours:
        raise ValueError("prompts.neighbours and prompts.each are for models that draw anything: this one keeps all it knows.")
    if config.prompts.synonyms:
        raise ValueError("prompts.synonyms is for models that draw anything: this one knows each concept by one name.")
    kind = config.prompts.kind
    if wrong := [concept.name for concept in concepts if kind not in ("auto", concept.kind)]:
        actual = next(concept.kind for concept in concepts if concept.name == wrong[0])
        raise ValueError(f"prompts.kind is {kind!r}, but {wrong[0]!r} is of kind {actual!r} in this model: leave it out.")


def refuse_kept_synonyms(synonyms: tuple[str, ...], kept: tuple[str, ...]) -> None:
    """Raise ValueError for a synonym of the concept that is its anchor, or protected."""
    for synonym in synonyms:
        if same := [name for name in kept if names_within(synonym, name)]:
            raise ValueError(
                f"prompts.synonyms has {synonym!r}, but {same[0]!r} is the anchor or protected: name another there."
            )


def refuse_erased(role: str, texts: tuple[str, ...], name: str, names: tuple[str, ...]) -> None:
    """Raise ValueError for an anchor or a neighbour (`role`) that asks for the concept itself, or for another of the run."""
    for text in texts:
        if names_within(name, text):
            raise ValueError(f"{role} {text!r} asks for the concept itself ({name!r}); name another.")
        if names_any(names, text):
            raise ValueError(f"{role} {text!r} of {name!r} is erased too; name another.")
