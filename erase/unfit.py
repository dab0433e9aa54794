"""What a method cannot do with a plan, found before any picture is drawn and not at its first step."""

from typing import TYPE_CHECKING

from torch import nn

from erase.methods.retrain import left_out
from erase.telling import has_mask

if TYPE_CHECKING:
    from erase.config import RunConfig
    from erase.plan import Plan, Target


def refuse_unfit(plan: "Plan") -> None:
    """Raise ValueError if the plan's method could not work by it."""
    config, name = plan.config, plan.config.method.name
    if name == "forget_me_not" and config.train.gradient_checkpointing:
        raise ValueError("forget_me_not reads attention maps, which train.gradient_checkpointing discards: turn that off.")
    if name == "concept_ablation":
        for target in plan.targets:
            if not has_pictures(plan, target):
                raise ValueError(
                    f"concept_ablation learns from pictures of what {target.concept.name!r} becomes, and there are none: "
                    f"{_advice(plan, target)}."
                )
    if name == "retrain":
        left_out(plan)
        if config.model != "emoji":
            raise ValueError(f"retrain is for the embedded model, whose training data are available, not for {config.model}.")


def refuse_empty_mask(config: "RunConfig", denoiser: nn.Module) -> None:
    """Raise ValueError if the density chooses less than one of the denoiser's weights."""
    num_weights = sum(weights.numel() for weights in denoiser.parameters())
    if has_mask(config) and int(config.saliency.density * num_weights) < 1:
        raise ValueError(
            f"saliency.density is {config.saliency.density:g}, less than one of {num_weights:,} weights: raise it to at least "
            f"{1 / num_weights:.1g}."
        )


def has_pictures(plan: "Plan", target: "Target") -> bool:
    """Whether the retain set has pictures of what the target becomes, each with the prompt that asks for the target."""
    given = {prompt.text for prompt in target.evaluation} if target.concept.kind == "prompts" else None
    duals = (prompt for prompt in plan.data.dual if prompt)
    return any(target.concept.matches(prompt) if given is None else prompt.text in given for prompt in duals)


def _advice(plan: "Plan", target: "Target") -> str:
    if target.concept.kind == "prompts":
        images = ", and leave out data.retain_images" if plan.data.retain_images else ""
        return f"put what is in its prompts.becomes into its prompts.retain as well{images}"
    if not target.anchors:
        return "give it an anchor, since it has none"
    return f"give data.num_anchor of at least {len(plan.targets)}"
