"""A run before it begins: each concept, what it becomes, what is protected, and every prompt."""

import itertools
from dataclasses import dataclass, replace

from erase.concepts import (
    Concept,
    Prompt,
    Vocabulary,
    alternatives,
    evaluation_prompts,
    find_concept,
    names_within,
    same_name,
)
from erase.config import ConceptPrompts, RunConfig
from erase.data import DataPlan, join_plans, plan_given, plan_named, plan_several, shares, with_images
from erase.images import content_hash, pictures_in
from erase.plan_checks import (
    check_method,
    check_prompts,
    refuse_erased,
    refuse_kept_synonyms,
    refuse_open_settings,
    refuse_overlap,
)
from erase.plan_classes import next_class
from erase.telling import takes_anchor
from erase.templates import PLAIN_STYLES, bare, named_kind, names_any, plain_name, sentences
from erase.unfit import refuse_unfit
from erase.words import Proposal, guess_kind, propose, retain_sentences
from pipelines.family import Family


@dataclass(frozen=True)
class Target:
    """One concept of a run, what it becomes, what is near it, and what is asked for it in the evaluation."""

    concept: Concept
    anchors: tuple[str, ...]
    neighbours: tuple[str, ...]
    evaluation: list[Prompt]


@dataclass(frozen=True)
class Plan:
    """A run before it begins: everything `--dry-run` prints."""

    config: RunConfig
    concept: Concept
    """The concept, or all of them as one (their names joined)."""
    anchors: tuple[str, ...]
    neighbours: tuple[str, ...]
    data: DataPlan
    forget_evaluation: list[Prompt]
    """The prompts of every target, one target after the other."""
    retain_evaluation: list[Prompt]
    targets: tuple[Target, ...]
    notes: tuple[str, ...] = ()
    """What was proposed and not given: to be read before the work begins."""


def plan(config: RunConfig, family: Family) -> Plan:
    """Resolve the concepts, their anchors and every prompt; raises ValueError for a concept the model does not know.

    Also for what the method could not do, so that nothing is drawn in vain.
    """
    check_prompts(config)
    check_method(config)
    images = pictures_in(config.data.forget_images, "data.forget_images") if config.data.forget_images else ()
    if images and len(config.concepts) > 1:
        raise ValueError("data.forget_images holds pictures of one concept: erase several by name, or one after the other.")
    num_forget = len(images) or config.data.num_forget
    if num_forget < len(config.concepts):
        raise ValueError(f"data.num_forget is {num_forget}: {len(config.concepts)} concepts need one picture each.")
    if config.prompts.forget or family.vocabulary is None:
        planned = _plan_open(config, family, num_forget)
        if images and planned.concept.kind != "prompts":
            planned = replace(planned, data=_by_itself(planned.data, planned.targets[0]))
    else:
        planned = _plan_known(config, family.vocabulary, num_forget, plain=bool(images))
    kept = pictures_in(config.data.retain_images, "data.retain_images") if config.data.retain_images else ()
    if images and kept and content_hash(images) == content_hash(kept):
        raise ValueError("data.forget_images and data.retain_images hold the same pictures: they cannot be both.")
    planned = replace(planned, data=with_images(planned.data, images, kept, config.prompts.retain))
    refuse_unfit(planned)
    return planned


def remaps(config: RunConfig) -> bool:
    """Whether each concept becomes one other, and not any other."""
    return getattr(config.method, "relabel", "concept_remap") == "concept_remap"


def anchor_for(config: RunConfig, index: int) -> str:
    """The anchor setting of the concept of that number."""
    given = getattr(config.method, "anchor", "nearest")
    if isinstance(given, str):
        if len(config.concepts) > 1 and given not in ("nearest", "next", "none"):
            raise ValueError(
                f"one anchor ({given!r}) is given for {len(config.concepts)} concepts: give one for each, in the same order."
            )
        return given
    if len(given) != len(config.concepts):
        raise ValueError(
            f"{len(given)} anchors are given for {len(config.concepts)} concepts: give one for each, in the same order."
        )
    return given[index]


def _plan_known(config: RunConfig, vocabulary: Vocabulary, num_forget: int, plain: bool) -> Plan:
    """For a model with a fixed vocabulary; `plain`: the forget pictures are the user's, of no style that could be named."""
    concepts = [find_concept(name, vocabulary) for name in config.concepts]
    for one, other in itertools.permutations(concepts, 2):
        refuse_overlap(one.name, other.name, one == other, one.matches(Prompt("", other.object, other.style)))
    refuse_open_settings(config, concepts)
    known, targets = [], []
    for index, concept in enumerate(concepts):
        rest = [other for other in concepts if other != concept]
        own = _without_erased(vocabulary, concept, rest)
        others = alternatives(concept, own)
        if not others:
            raise ValueError(
                f"nothing that the model draws is left for {concept.name!r} to become: erase fewer concepts at once."
            )
        if remaps(config):
            anchor = anchor_for(config, index)
            others = () if anchor == "none" else (choose_anchor(anchor, concept, others, own, rest),)
        asked, _ = evaluation_prompts(concept, own, config.evaluation.num_forget, 0)
        known.append((concept, own, others))
        targets.append(Target(concept, others, tuple(own.relatives(concept.object or concept.style or "")), asked))
    data = plan_several(known, vocabulary, num_forget, config.data.num_retain, config.data.num_anchor)
    if plain and concepts[0].kind == "object":
        data = _unstyled(data, known[0][0], known[0][2], vocabulary)
    _, kept = evaluation_prompts(concepts[0], vocabulary, 0, config.evaluation.retain_per_cell, concepts[1:])
    return _joined(config, targets, data, kept)


def _without_erased(vocabulary: Vocabulary, concept: Concept, rest: list[Concept]) -> Vocabulary:
    """What the concept's own prompts may name: nothing that, named there or put in its place, asks for another of the run."""
    objects = {c.object for c in rest if c.object and (c.kind == "object" or concept.object)} - {concept.object}
    styles = {c.style for c in rest if c.style and (c.kind == "style" or not concept.object)} - {concept.style}
    return vocabulary.without(objects, styles)


def _unstyled(data: DataPlan, concept: Concept, others: tuple[str, ...], vocabulary: Vocabulary) -> DataPlan:
    forget = [vocabulary.prompt(concept.object or "", None, k) for k in range(len(data.forget))]
    relabelled = [[vocabulary.prompt(o, None, p.template) for o in others] or [Prompt("")] for p in forget]
    return replace(data, forget=forget, relabelled=relabelled)


def _by_itself(data: DataPlan, target: Target) -> DataPlan:
    """The plan with forget prompts that name the concept, or a synonym of it, and nothing else."""
    kind = named_kind(target.concept)
    names = [(prompt.style if kind == "style" else prompt.object) or "" for prompt in data.forget]
    return replace(
        data,
        forget=[bare(kind, name, k) for k, name in enumerate(names)],
        relabelled=[[bare(kind, other, k) for other in target.anchors] or [Prompt("")] for k in range(len(names))],
    )


def choose_anchor(
    anchor: str, concept: Concept, others: tuple[str, ...], vocabulary: Vocabulary, rest: list[Concept] | None = None
) -> str:
    """What the concept becomes: the given name, the next in the list, or its nearest relative; never one of the `rest`."""
    own = concept.object or concept.style or ""
    anchor = next((name for name in (own, *others) if same_name(name, anchor)), anchor)
    if anchor == own:
        raise ValueError(f"the anchor is the concept itself ({anchor!r}); name another, as in --anchor {others[0]!r}.")
    if anchor == "next":
        names = vocabulary.objects if concept.object else vocabulary.styles
        return names[(names.index(own) + 1) % len(names)]
    if anchor == "nearest":
        return vocabulary.relatives(own)[0]
    if erased := [other.name for other in rest or [] if anchor in (other.object, other.style)]:
        raise ValueError(f"the anchor {anchor!r} of {concept.name!r} is erased too ({erased[0]!r}); name another.")
    if anchor not in others:
        raise ValueError(f"the anchor {anchor!r} is not one of: {', '.join(others)}.")
    return anchor


def _plan_open(config: RunConfig, family: Family, num_forget: int) -> Plan:
    """For a model that draws anything, and for prompts given by hand."""
    names = tuple(plain_name(name) for name in config.concepts)
    if empty := [name for name in config.concepts if not any(c.isalnum() for c in name)]:
        raise ValueError(f"the concept is empty ({empty[0]!r}); name one, as in `erase --concept dog`.")
    for one, other in itertools.permutations(names, 2):
        refuse_overlap(one, other, same_name(one, other), names_within(one, other))
    targets, parts, kept, notes = [], [], [], []
    also: list[str] = []
    totals = (num_forget, config.data.num_retain, config.data.num_anchor)
    numbers = zip(*(shares(total, len(names)) for total in totals), strict=True)
    for index, (name, (forget, retain, anchor)) in enumerate(zip(names, numbers, strict=True)):
        given = config.prompts.each.get(config.concepts[index], config.prompts)
        if given.forget:
            if anchor_for(config, index) != "nearest":
                raise ValueError(
                    f"the prompts of {name!r} are given, so an anchor has no effect: say in becomes what it turns into."
                )
            target, part, asked = _given(name, given, names, forget, retain)
        else:
            target, note, same = _named(config, family, index, name, given, names)
            notes += note
            synonyms = given.synonyms or (config.prompts.synonyms if len(names) == 1 else ())
            refuse_kept_synonyms(synonyms, (*target.anchors, *target.neighbours))
            also += synonyms
            erased = (*names, *synonyms, *same)
            prompts = retain_sentences(named_kind(target.concept), target.neighbours, erased, retain, index)
            part = plan_named(target.concept, target.anchors, prompts, forget, anchor, names, synonyms)
            # each neighbour once, and as many others
            asked = prompts[: 2 * len(target.neighbours) * config.evaluation.retain_per_cell]
        targets.append(target)
        parts.append(part)
        kept += asked
    planned = _joined(config, targets, join_plans(parts), kept)
    return replace(planned, notes=tuple(notes), data=replace(planned.data, names=(*planned.data.names, *also)))


def _given(
    name: str, given: ConceptPrompts, names: tuple[str, ...], num_forget: int, num_retain: int
) -> tuple[Target, DataPlan, list[Prompt]]:
    """A concept whose prompts are given by hand; raises ValueError if one to keep names another concept of the run."""
    others = tuple(other for other in names if other != name)
    for text in (*given.becomes, *given.retain):
        if names_any(others, text):
            raise ValueError(f"the prompt {text!r}, given for {name!r}, asks for another concept that is erased in this run.")
    part = plan_given(name, given.forget, given.becomes, given.retain, num_forget, num_retain)
    target = Target(Concept(name, "prompts"), given.becomes, (), [Prompt(text) for text in given.forget])
    return target, part, [Prompt(text) for text in given.retain]


def _named(
    config: RunConfig, family: Family, index: int, name: str, given: ConceptPrompts, names: tuple[str, ...]
) -> tuple[Target, list[str], tuple[str, ...]]:
    """A concept known by its name alone, lines that say what was guessed and proposed for it, and what is taken for it."""
    set_kind = given.kind if given.kind != "auto" else config.prompts.kind
    kind = guess_kind(config.concepts[index]) if set_kind == "auto" else set_kind
    notes = [f"{name}: kind {kind} (guessed; --kind sets it)"] if set_kind == "auto" else []
    anchor = anchor_for(config, index)
    if anchor == "next":
        anchor = next_class(name, names)
    remap = remaps(config) and anchor != "none"
    same: tuple[str, ...] = ()
    chosen = None if anchor in ("nearest", "none") else anchor
    neighbours = given.neighbours or config.prompts.neighbours
    for role, texts in (("the anchor", (chosen,) if chosen and remap else ()), ("the neighbour", neighbours)):
        refuse_erased(role, texts, name, names)
    if not neighbours or (remap and chosen is None):
        proposal = propose(family, name, kind, names)
        unsaid = remap and chosen is None and takes_anchor(config)
        notes += _proposed(name, proposal, anchor=unsaid, neighbours=not neighbours)
        chosen = chosen or proposal.anchor
        neighbours = neighbours or tuple(word for word in proposal.neighbours if word != chosen)
        same = tuple(word for word in proposal.same if not any(names_within(word, kept) for kept in (chosen, *neighbours)))
    anchors = (chosen,) if remap and chosen else () if anchor == "none" else neighbours
    concept = Concept(name, kind, style=name) if kind == "style" else Concept(name, kind, object=name)
    avoid = tuple(other for other in names if other != name)
    return Target(concept, anchors, neighbours, sentences(kind, name, config.evaluation.num_forget, avoid)), notes, same


def _proposed(name: str, proposal: Proposal, anchor: bool, neighbours: bool) -> list[str]:
    """What was proposed, a line each."""
    how = {"neutral": "its neutral in the word list", "nearest": "the nearest of the word list"}[proposal.why]
    plain = " without any style" if proposal.anchor in PLAIN_STYLES else ""
    lines = [f"{name}: becomes {proposal.anchor!r}{plain} ({how}; --anchor sets it)"] if anchor else []
    if neighbours:
        lines.append(f"{name}: protected beside it: {', '.join(proposal.neighbours)} (prompts.neighbours sets them)")
    if proposal.same:
        lines.append(f"{name}: taken for the same thing, so not protected: {', '.join(proposal.same)}")
    return lines


def _joined(config: RunConfig, targets: list[Target], data: DataPlan, kept: list[Prompt]) -> Plan:
    """The plan of all targets; what several have in common stands in one concept, with their names joined."""
    words = [word for t in targets for word in ((t.concept.object, t.concept.style) if t.concept.object else (t.concept.name,))]
    data = replace(data, names=tuple(word for word in words if word))
    asked = [prompt for target in targets for prompt in target.evaluation]
    if len(targets) == 1:
        only = targets[0]
        return Plan(config, only.concept, only.anchors, only.neighbours, data, asked, kept, tuple(targets))
    kinds = {target.concept.kind for target in targets}
    concept = Concept(" + ".join(target.concept.name for target in targets), kinds.pop() if len(kinds) == 1 else "mixed")
    anchors = [" + ".join(row) for row in zip(*(target.anchors for target in targets), strict=False)]
    near = itertools.chain(*itertools.zip_longest(*(target.neighbours for target in targets)))
    neighbours = tuple(dict.fromkeys(name for name in near if name))
    return Plan(config, concept, tuple(anchors), neighbours, data, asked, kept, tuple(targets))
