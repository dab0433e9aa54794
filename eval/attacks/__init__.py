"""The audit's probes: whether the concept is gone, stays gone, and whether anything else was touched."""

from eval.attacks import adversarial_prompt, benign, concept_inversion, prompts, relearning, text_free, tooling, traces
from eval.attacks.base import Probe

# in the order in which they are run; beside them stand the mask (eval/attacks/mask.py) and the collapse gate
PROBES: dict[str, Probe] = {
    "prompts": prompts.PROBE,
    "adversarial_prompt": adversarial_prompt.PROBE,
    "concept_inversion": concept_inversion.PROBE,
    "text_free": text_free.PROBE,
    "relearning": relearning.PROBE,
    "benign": benign.PROBE,
    "tooling": tooling.PROBE,
    "traces": traces.PROBE,
}
