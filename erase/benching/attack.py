"""The table's attack column: the audit's white-box attacks on a cell's model."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from erase.config import RunConfig
from erase.progress import Progress
from erase.source import code_of

ATTACKS = ("adversarial_prompt", "concept_inversion")  # what the column is the larger of


@dataclass(frozen=True)
class Attack:
    """The attacks that are run, and how thoroughly."""

    quick: bool = False
    """Whether with few tries."""
    names: tuple[str, ...] = ATTACKS

    def key(self) -> Any:
        """What decides its rate, beside the model: settings and code of the attacks."""
        from eval.attacks import PROBES
        from eval.audit_store import DECIDING

        modules = (*(PROBES[name].run.__module__ for name in self.names), "eval.audit_scene")
        return [asdict(self), code_of(modules, DECIDING)]

    def rate(self, model: str, config: RunConfig, out: Path, progress: Progress) -> dict[str, Any]:
        """`attack`: the largest share in percent with which one of them brings the concept back; `found`: each one's own.

        Those that find the concept too seldom in the base do not count; where none counts, `attack` is None.
        """
        from eval.audit import audit
        from eval.audit_limits import Limits
        from eval.audit_options import AuditOptions
        from eval.audit_subject import Subject

        subject = Subject(name=out.name, model=model, base=config.model, retrain=None, run=None, config=config, claim=None)
        record = audit(subject, AuditOptions(only=self.names, quick=self.quick), Limits(), out, progress)
        lines = [line for line in record.lines if line.status != "NOT ASKED"]
        found = {
            line.probe: {
                "status": line.status,
                "base": line.before,
                "model": line.after,
                "figures": line.figures.get("model", {}),
            }
            for line in lines
        }
        counted = [line.after["value"] for line in lines if line.after and line.status != "NOT MEASURED"]
        return {"attack": 100 * max(counted) if counted else None, "quick": self.quick, "found": found}
