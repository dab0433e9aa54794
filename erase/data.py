"""The forget and retain sets: latents that the model made itself, and a table of prompt embeddings."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from erase.concepts import Concept, Prompt, Vocabulary, concept_version, forget_prompts, prompt_alone, relabel, retain_prompts
from erase.files import write_safetensors
from erase.images import caption_of, content_hash, read_picture
from erase.processes import in_order, share
from erase.reading import check_safetensors
from erase.templates import alone, named_kind, sentence, sentences
from pipelines.family import Conditioning, Family, Progress


@dataclass(frozen=True)
class TrainingData:
    """What training needs of the model's VAE and text encoder; afterwards the denoiser is enough.

    Prompts are rows of `table` (P rows). N = forget pictures, M = retain pictures, A = what the concept can be relabelled to.
    """

    table: Conditioning
    empty_prompt: Tensor  # () row of ""
    forget_latents: Tensor  # (N, C, h, w)
    forget_prompt: Tensor  # (N,) row of the prompt that asks for the concept
    forget_relabel: Tensor  # (N, A) rows of the prompt with the concept replaced
    retain_latents: Tensor  # (M, C, h, w)
    retain_prompt: Tensor  # (M,)
    retain_dual: Tensor  # (M,) row of the retain prompt with the concept put in, or -1
    dual_index: Tensor  # (D,) retain pictures that stand for what the concept is relabelled to
    concept_tokens: Tensor | None = None  # (P, L) bool: where each prompt's embeddings stand for a concept's name
    end_tokens: Tensor | None = None  # (P, L) bool: where they stand for its end and the padding behind it
    forget_alone: Tensor | None = None  # (N,) row of the prompt that asks for the picture's concept and names nothing else

    def conditioning(self, rows: Tensor) -> Conditioning:
        """The conditioning of those prompts."""
        return {key: values[rows] for key, values in self.table.items()}

    def save(self, path: Path, provenance: dict[str, str]) -> None:
        """Write everything as one safetensors file."""
        tensors = {key: value for key, value in vars(self).items() if key != "table" and value is not None}
        write_safetensors(tensors | {f"table.{k}": v for k, v in self.table.items()}, path, provenance)


def load_data(path: Path) -> TrainingData:
    """The data set that `TrainingData.save` wrote; raises ValueError on any other file."""
    try:
        check_safetensors(path)
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        table = {k.removeprefix("table."): tensors.pop(k) for k in list(tensors) if k.startswith("table.")}
        return TrainingData(table=table, **tensors)
    except (OSError, TypeError, ValueError, SafetensorError) as error:
        raise ValueError(f"{path} is not a data set of this tool: {error}.") from error


@dataclass(frozen=True)
class DataPlan:
    """Every prompt of a run before a picture is made: what `--dry-run` prints and `make_data` generates."""

    forget: list[Prompt]
    relabelled: list[list[Prompt]]  # per forget prompt, the A prompts with the concept replaced
    alone: list[Prompt]  # per forget prompt, the one that asks for the concept and names nothing else
    retain: list[Prompt]
    dual: list[Prompt | None]  # per retain prompt, the same with the concept put in
    num_anchor: int  # how many of the retain prompts (the first) show the anchor
    forget_images: tuple[Path, ...] = ()  # the user's pictures, one per forget prompt; empty: the model draws them
    retain_images: tuple[Path, ...] = ()  # one per retain prompt behind the anchors'
    names: tuple[str, ...] = ()  # the words that name the concepts

    def images_hash(self) -> list[str]:
        """One hash for each folder of pictures that is used."""
        return [content_hash(images) for images in (self.forget_images, self.retain_images) if images]


# a concept, the vocabulary its own prompts are made of, and what it is relabelled to
Known = tuple[Concept, Vocabulary, tuple[str, ...]]


def plan_data(
    concept: Concept, vocabulary: Vocabulary, others: tuple[str, ...], num_forget: int, num_retain: int, num_anchor: int
) -> DataPlan:
    """The prompts for a concept that is relabelled to `others` (one name: concept_remap; several: random_label).

    With one anchor, `num_anchor` pictures of it are put before the retain set.
    """
    return plan_several([(concept, vocabulary, others)], vocabulary, num_forget, num_retain, num_anchor)


def plan_several(targets: list[Known], vocabulary: Vocabulary, num_forget: int, num_retain: int, num_anchor: int) -> DataPlan:
    """The prompts for concepts erased together: forget and anchor prompts in even shares, one retain set for all."""
    parts = []
    for (concept, own, others), forget, anchor in zip(
        targets, shares(num_forget, len(targets)), shares(num_anchor, len(targets)), strict=True
    ):
        prompts = forget_prompts(concept, own, forget)
        relabelled = [[relabel(prompt, concept, other, own) for other in others] or [Prompt("")] for prompt in prompts]
        anchors: list[Prompt] = []
        if len(others) == 1:
            anchors = [relabel(prompt, concept, others[0], own) for prompt in forget_prompts(concept, own, anchor)]
        duals: list[Prompt | None] = [concept_version(prompt, concept, own) for prompt in anchors]
        parts.append(DataPlan(prompts, relabelled, [prompt_alone(concept, own)] * forget, anchors, duals, len(anchors)))
    erased = [concept for concept, _, _ in targets]
    retain = retain_prompts(erased[0], vocabulary, num_retain, erased[1:])
    dual: list[Prompt | None] = [None] * num_retain
    if not any(part.num_anchor for part in parts):
        dual = [_meant_by(prompt, k, targets) for k, prompt in enumerate(retain)]
    return join_plans([*parts, DataPlan([], [], [], retain, dual, 0)])


def shares(num: int, parts: int) -> list[int]:
    """`num` in even parts, the first ones one larger where it does not divide."""
    return [num // parts + (part < num % parts) for part in range(parts)]


def join_plans(parts: list[DataPlan]) -> DataPlan:
    """One plan of several: the forget sets one after the other, all anchors' prompts before the rest of the retain sets.

    Where one concept can become more things than another, the shorter list is repeated, so that each stays equally likely.
    """
    width = math.lcm(*(len(row) for part in parts for row in part.relabelled[:1]))
    anchors: list[tuple[Prompt, Prompt | None]] = []
    rest: list[tuple[Prompt, Prompt | None]] = []
    for part in parts:
        pairs = list(zip(part.retain, part.dual, strict=True))
        anchors += pairs[: part.num_anchor]
        rest += pairs[part.num_anchor :]
    return DataPlan(
        [prompt for part in parts for prompt in part.forget],
        [row * (width // len(row)) for part in parts for row in part.relabelled],
        [prompt for part in parts for prompt in part.alone],
        [prompt for prompt, _ in anchors + rest],
        [dual for _, dual in anchors + rest],
        len(anchors),
    )


def plan_given(
    name: str, forget: tuple[str, ...], becomes: tuple[str, ...], retain: tuple[str, ...], num_forget: int, num_retain: int
) -> DataPlan:
    """The prompts given by hand, gone round until there are enough; alone, the concept is asked for by its name.

    As many to become as to forget are pairs, in their order; else each prompt to forget can become any of them.
    """
    meant = [(text,) for text in becomes] if len(becomes) == len(forget) else [becomes] * len(forget)
    prompts = [Prompt(forget[k % len(forget)]) for k in range(num_forget)]
    relabelled = [[Prompt(text) for text in meant[k % len(forget)]] for k in range(num_forget)]
    kept = [Prompt(retain[k % len(retain)]) for k in range(num_retain)]
    dual: list[Prompt | None] = []
    for k, prompt in enumerate(kept):
        asking = [text for text, own in zip(forget, meant, strict=True) if prompt.text in own]
        dual.append(Prompt(asking[k % len(asking)]) if asking else None)
    return DataPlan(prompts, relabelled, [Prompt(name)] * num_forget, kept, dual, 0)


def plan_named(
    concept: Concept,
    others: tuple[str, ...],
    retain: list[Prompt],
    num_forget: int,
    num_anchor: int,
    erased: tuple[str, ...],
    synonyms: tuple[str, ...] = (),
) -> DataPlan:
    """The prompts for a concept known by its name alone, relabelled to `others`; none names another of the `erased`.

    Every second forget prompt asks for one of the synonyms instead, in turn.
    """
    kind, name = named_kind(concept), concept.name
    avoid = tuple(other for other in erased if other != name)
    forget = sentences(kind, name, num_forget, avoid)
    by_itself = [alone(kind, name)] * num_forget
    for k in range(1, len(forget) if synonyms else 0, 2):
        synonym = synonyms[k // 2 % len(synonyms)]
        forget[k], by_itself[k] = sentence(kind, synonym, forget[k].template), alone(kind, synonym)
    relabelled = [[sentence(kind, other, prompt.template) for other in others] or [Prompt("")] for prompt in forget]
    anchors: list[Prompt] = []
    if len(others) == 1:
        anchors = [sentence(kind, others[0], prompt.template) for prompt in sentences(kind, name, num_anchor, avoid)]
    dual: list[Prompt | None] = [sentence(kind, name, prompt.template) for prompt in anchors]
    for prompt in retain:
        stands = not anchors and _replaces(prompt, concept, others) and (prompt.style is None) == (kind != "style")
        dual.append(sentence(kind, name, prompt.template) if stands else None)
    return DataPlan(forget, relabelled, by_itself, anchors + retain, dual, len(anchors))


def with_images(plan: DataPlan, forget: tuple[Path, ...], retain: tuple[Path, ...], prompts: tuple[str, ...]) -> DataPlan:
    """The plan with the user's pictures in place of those that the model would draw; the anchor is drawn all the same.

    The forget plan has as many prompts as pictures. A picture to keep is asked for by the text beside it, else by `prompts`
    in turn, else by the empty prompt.
    """
    if forget:
        assert len(forget) == len(plan.forget)
        plan = replace(plan, forget_images=forget)
    if retain:
        asked = []
        for k, picture in enumerate(retain):
            caption = caption_of(picture)
            asked.append(Prompt(caption if caption is not None else prompts[k % len(prompts)] if prompts else ""))
        head = slice(0, plan.num_anchor)
        duals: list[Prompt | None] = [*plan.dual[head], *[None] * len(asked)]
        plan = replace(plan, retain=[*plan.retain[head], *asked], dual=duals, retain_images=retain)
    return plan


def _meant_by(prompt: Prompt, k: int, targets: list[Known]) -> Prompt | None:
    """The prompt with a concept put in that it can stand for, the concepts in turn; None if it stands for none."""
    stands = [(concept, own) for concept, own, others in targets if _replaces(prompt, concept, others)]
    if not stands:
        return None
    concept, own = stands[k % len(stands)]
    return concept_version(prompt, concept, own)


def _replaces(prompt: Prompt, concept: Concept, others: tuple[str, ...]) -> bool:
    """Whether the prompt is one that the concept's prompt can be relabelled to."""
    if concept.object:
        return prompt.object in others and (concept.style is None or prompt.style == concept.style)
    return prompt.style in others


def make_data(
    family: Family,
    plan: DataPlan,
    *,
    seed: int,
    forget_guidance_scale: float,
    retain_guidance_scale: float,
    num_inference_steps: int,
    batch_size: int,
    progress: Progress | None = None,
    kept: Path | None = None,
) -> TrainingData:
    """Generate both sets with the model itself, or encode the user's pictures, and embed every prompt once.

    `kept`: a folder where each batch is written as soon as it is drawn, and taken from if it is there: a run that was stopped
    goes on behind it, to the same latents.
    """
    rows = _table_rows(plan)
    first = 1_000_003 * (seed + 1)  # far from the evaluation's seeds
    drawing = _Drawing(family, first, num_inference_steps, batch_size, progress, kept)
    dual = torch.tensor([rows[p.text] if p else -1 for p in plan.dual])
    return TrainingData(
        table=family.encode_prompts(list(rows)),
        empty_prompt=torch.tensor(rows[""]),
        forget_latents=drawing.latents(plan.forget, plan.forget_images, forget_guidance_scale, 0),
        forget_prompt=torch.tensor([rows[p.text] for p in plan.forget]),
        forget_relabel=torch.tensor([[rows[p.text] for p in row] for row in plan.relabelled]),
        retain_latents=drawing.latents(plan.retain, plan.retain_images, retain_guidance_scale, 500_000),
        retain_prompt=torch.tensor([rows[p.text] for p in plan.retain]),
        retain_dual=dual,
        dual_index=(dual >= 0).nonzero()[:, 0],
        concept_tokens=family.find_words(list(rows), plan.names),
        end_tokens=family.find_ends(list(rows)),
        forget_alone=torch.tensor([rows[p.text] for p in plan.alone]),
    )


def _table_rows(plan: DataPlan) -> dict[str, int]:
    """The row of each prompt in the table of embeddings."""
    prompts = ["", *(p.text for p in (*plan.forget, *plan.retain))]
    prompts += [p.text for row in plan.relabelled for p in row]
    prompts += [p.text for p in plan.dual if p] + [p.text for p in plan.alone]
    return {text: row for row, text in enumerate(dict.fromkeys(prompts))}


@dataclass(frozen=True)
class _Drawing:
    """How a set's latents come about: the model draws them batch by batch, or encodes the user's pictures."""

    family: Family
    first_seed: int
    num_inference_steps: int
    batch_size: int
    progress: Progress | None
    kept: Path | None

    def latents(self, items: list[Prompt], images: tuple[Path, ...], guidance_scale: float, offset: int) -> Tensor:
        """Latents (N, C, h, w) of the prompts, the last of which have pictures; the k-th's seed is first_seed + offset + k."""
        drawn = items[: len(items) - len(images)]
        parts = [self._generated(drawn, guidance_scale, offset)] if drawn else []
        return torch.cat([*parts, *encode_pictures(self.family, images, self.batch_size, self.progress)])

    def _generated(self, items: list[Prompt], guidance_scale: float, offset: int) -> Tensor:
        """Whole batches are dealt out over the processes: a picture's last bits depend on the batch it is made in."""
        size = self.batch_size
        batches = [range(k, min(k + size, len(items))) for k in range(0, len(items), size)]
        return torch.cat(in_order([self._batch(items, batch, guidance_scale, offset) for batch in share(batches)]))

    def _batch(self, items: list[Prompt], batch: range, guidance_scale: float, offset: int) -> Tensor:
        def draw() -> Tensor:
            return self.family.generate(
                [items[k].text for k in batch],
                [self.first_seed + offset + k for k in batch],
                num_inference_steps=self.num_inference_steps,
                guidance_scale=guidance_scale,
                batch_size=self.batch_size,
                progress=self.progress,
            )

        if self.kept is None:
            return draw()
        return _kept(self.kept / f"{offset + batch.start}-{len(batch)}.safetensors", draw, self.progress)


def _kept(path: Path, draw: Callable[[], Tensor], progress: Progress | None) -> Tensor:
    """A batch's latents from its file, or drawn and written there; raises ValueError if the file is not whole."""
    if not path.is_file():
        latents = draw()
        write_safetensors({"latents": latents}, path, {})
        return latents
    try:
        check_safetensors(path)
        with safe_open(path, "pt") as file:
            latents = file.get_tensor("latents")
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, and its pictures are drawn again.") from error
    if progress:
        progress(len(latents))
    return latents


def encode_pictures(family: Family, images: tuple[Path, ...], batch_size: int, progress: Progress | None) -> Iterator[Tensor]:
    """Latents of the user's pictures, a batch at a time."""
    size = family.image_size
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        yield family.encode_images(torch.stack([read_picture(path, size) for path in batch]))
        if progress:
            progress(len(batch))
