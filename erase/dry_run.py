"""What a run would do, told and not done: `--dry-run`."""

import os
from pathlib import Path
from typing import Any

from erase.estimate import estimate
from erase.evaluation import is_measured
from erase.files import require_space
from erase.folder import require_own
from erase.methods import METHODS
from erase.plan import Plan
from erase.space import bytes_missing
from erase.telling import becomes, takes_anchor
from erase.unfit import refuse_empty_mask
from pipelines.family import Family

FEW = 3


def report(plan: Plan, family: Family, out: Path) -> dict[str, Any]:
    """The config, what becomes of the concept, every prompt, and the cost; nothing is written.

    Raises ValueError where the run itself would before its first stage: for a folder that is not its own or cannot be written,
    for a density that chooses no weight, and for a disk with too little room.
    """
    refuse_empty_mask(plan.config, family.denoiser)
    _require_writable(out)
    require_own(out, plan.config)
    require_space(out, bytes_missing(plan, family, out))
    return {
        "out": str(out),
        "config": plan.config.model_dump(mode="json"),
        "concept": plan.concept.name,
        "kind": plan.concept.kind,
        "becomes": becomes(plan.config, plan.anchors),
        "protected": list(plan.neighbours),
        "proposed": list(plan.notes),
        "prompts": prompts_of(plan, family),
        "estimate": estimate(plan, family),
    }


def prompts_of(plan: Plan, family: Family) -> dict[str, Any]:
    """Every prompt that the run draws or learns by: empty lists for a model made anew, and for what no detector judges."""
    measured = is_measured(plan, family)
    drawn = not METHODS[plan.config.method.name].remake
    pairs = zip(plan.data.forget, plan.data.relabelled, strict=True)
    others = [{"becomes": [other.text for other in row]} if takes_anchor(plan.config) else {} for _, row in pairs]
    return {
        "forget": [{"prompt": p.text} | more for p, more in zip(plan.data.forget, others, strict=True)] if drawn else [],
        "retain": [prompt.text for prompt in plan.data.retain] if drawn else [],
        "evaluation_forget": [prompt.text for prompt in plan.forget_evaluation] if measured else [],
        "evaluation_retain": [prompt.text for prompt in plan.retain_evaluation] if measured else [],
    }


def shortened(found: dict[str, Any]) -> dict[str, Any]:
    """The report for a person: how many prompts there are of each sort, and the first few."""
    return found | {"prompts": {name: _few(prompts) for name, prompts in found["prompts"].items()}}


def _few(prompts: list[Any]) -> dict[str, Any]:
    texts = dict.fromkeys(prompt if isinstance(prompt, str) else _arrow(**prompt) for prompt in prompts)
    return {"number": len(prompts), "first": list(texts)[:FEW]}


def _arrow(prompt: str, becomes: list[str] | None = None) -> str:
    if not becomes:
        return prompt
    more = f" or {len(becomes) - 1} others" if len(becomes) > 1 else ""
    return f"{prompt} -> {becomes[0]}{more}"


def _require_writable(out: Path) -> None:
    there = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"cannot write to {out}: {there} is {'not writable' if there.is_dir() else 'a file'}.")
