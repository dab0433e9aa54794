"""The report and the model card of a finished run, written again now that it was audited."""

from pathlib import Path

from erase.config import RunConfig, validate
from erase.files import write_text
from erase.folder import Folder, changes_of, require_recorded_base, versions
from erase.lock import locked_by_main
from erase.plan import plan
from erase.progress import Progress
from erase.reading import read_yaml
from erase.run import Run, report_stage


def report_again(path: Path, progress: Progress) -> bool:
    """Write a finished run's report and model card again, now that it was audited.

    False if the report cannot be made of what the run holds, since other versions or settings made it or its base is not there
    or another: then of the card only what it says of the audit is new.
    """
    from pipelines.load import load, model_hash

    values = read_yaml(path / "config.yaml")
    made_by = values.pop("versions", None)
    config = validate(values)
    if made_by != versions() or changes_of(path, config):
        with locked_by_main(path):
            return _report_of_others(path, config)
    try:
        base_hash = model_hash(config.model, config.load)
        require_recorded_base(path, config.model, base_hash)
        family = load(config.model, config.load)
    except (ValueError, OSError):
        with locked_by_main(path):
            _only_the_cards_audit(path)
        return False
    with locked_by_main(path):
        folder = Folder(path, config, progress.note)
        report_stage(Run(plan(config, family), family, folder, progress, base_hash))
    return True


def _report_of_others(path: Path, config: RunConfig) -> bool:
    """Report and card of a run of other versions, whose record stays as it is; False if there is but the card's audit."""
    from jinja2 import TemplateError

    from eval.report import write_report
    from pipelines.load import load

    try:
        write_report(path, plan(config, load(config.model, config.load)))
    except (ValueError, LookupError, TypeError, AttributeError, OSError, TemplateError):
        _only_the_cards_audit(path)
        return False
    return True


def _only_the_cards_audit(path: Path) -> None:
    from eval.audit_report import card_with_audit

    card = path / "README.md"
    if card.is_file():
        write_text(card_with_audit(card.read_text(encoding="utf-8"), path), card)
