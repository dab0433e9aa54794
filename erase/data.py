"""The forget and retain sets: latents that the model made itself, and a table of prompt embeddings."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from erase.concepts import Concept, Prompt, Vocabulary, concept_version, forget_prompts, relabel, retain_prompts
from erase.files import write_safetensors
from erase.processes import in_order, share
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

    def conditioning(self, rows: Tensor) -> Conditioning:
        """The conditioning of those prompts."""
        return {key: values[rows] for key, values in self.table.items()}

    def save(self, path: Path, provenance: dict[str, str]) -> None:
        """Write everything as one safetensors file."""
        tensors = {key: value for key, value in vars(self).items() if key != "table"}
        write_safetensors(tensors | {f"table.{k}": v for k, v in self.table.items()}, path, provenance)


def load_data(path: Path) -> TrainingData:
    """The data set that `TrainingData.save` wrote; raises ValueError on any other file."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        table = {k.removeprefix("table."): tensors.pop(k) for k in list(tensors) if k.startswith("table.")}
        return TrainingData(table=table, **tensors)
    except (OSError, TypeError, SafetensorError) as error:
        raise ValueError(f"{path} is not a data set of this tool: {error}.") from error


@dataclass(frozen=True)
class DataPlan:
    """Every prompt of a run before a picture is made: what `--dry-run` prints and `make_data` generates."""

    forget: list[Prompt]
    relabelled: list[list[Prompt]]  # per forget prompt, the A prompts with the concept replaced
    retain: list[Prompt]
    dual: list[Prompt | None]  # per retain prompt, the same with the concept put in
    num_anchor: int  # how many of the retain prompts (the first) show the anchor


def plan_data(
    concept: Concept, vocabulary: Vocabulary, others: tuple[str, ...], num_forget: int, num_retain: int, num_anchor: int
) -> DataPlan:
    """The prompts for a concept that is relabelled to `others` (one name: concept_remap; several: random_label).

    With one anchor, `num_anchor` pictures of it are put before the retain set.
    """
    forget = forget_prompts(concept, vocabulary, num_forget)
    relabelled = [[relabel(prompt, concept, other, vocabulary) for other in others] for prompt in forget]
    anchors: list[Prompt] = []
    if len(others) == 1:
        prompts = forget_prompts(concept, vocabulary, num_anchor)
        anchors = [relabel(prompt, concept, others[0], vocabulary) for prompt in prompts]
    retain = anchors + retain_prompts(concept, vocabulary, num_retain)
    dual = []
    for index, prompt in enumerate(retain):
        stands = index < len(anchors) if anchors else _replaces(prompt, concept, others)
        dual.append(concept_version(prompt, concept, vocabulary) if stands else None)
    return DataPlan(forget, relabelled, retain, dual, len(anchors))


def plan_given(
    forget: tuple[str, ...], becomes: tuple[str, ...], retain: tuple[str, ...], num_forget: int, num_retain: int
) -> DataPlan:
    """The prompts given by hand, gone round until there are enough."""
    prompts = [Prompt(forget[k % len(forget)]) for k in range(num_forget)]
    relabelled = [[Prompt(text) for text in becomes] for _ in prompts]
    kept = [Prompt(retain[k % len(retain)]) for k in range(num_retain)]
    dual = [Prompt(forget[k % len(forget)]) if prompt.text in becomes else None for k, prompt in enumerate(kept)]
    return DataPlan(prompts, relabelled, kept, dual, 0)


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
) -> TrainingData:
    """Generate both sets with the model itself and embed every prompt once."""
    prompts = ["", *(p.text for p in (*plan.forget, *plan.retain))]
    prompts += [p.text for row in plan.relabelled for p in row] + [p.text for p in plan.dual if p]
    rows = {text: row for row, text in enumerate(dict.fromkeys(prompts))}
    first = 1_000_003 * (seed + 1)  # far from the evaluation's seeds

    def generate(items: list[Prompt], guidance_scale: float, offset: int) -> Tensor:
        """Whole batches are dealt out over the processes: a picture's last bits depend on the batch it is made in."""
        batches = [range(k, min(k + batch_size, len(items))) for k in range(0, len(items), batch_size)]
        made = [
            family.generate(
                [items[k].text for k in batch],
                [first + offset + k for k in batch],
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                batch_size=batch_size,
                progress=progress,
            )
            for batch in share(batches)
        ]
        return torch.cat(in_order(made))

    dual = torch.tensor([rows[p.text] if p else -1 for p in plan.dual])
    return TrainingData(
        table=family.encode_prompts(list(rows)),
        empty_prompt=torch.tensor(rows[""]),
        forget_latents=generate(plan.forget, forget_guidance_scale, 0),
        forget_prompt=torch.tensor([rows[p.text] for p in plan.forget]),
        forget_relabel=torch.tensor([[rows[p.text] for p in row] for row in plan.relabelled]),
        retain_latents=generate(plan.retain, retain_guidance_scale, 500_000),
        retain_prompt=torch.tensor([rows[p.text] for p in plan.retain]),
        retain_dual=dual,
        dual_index=(dual >= 0).nonzero()[:, 0],
    )
