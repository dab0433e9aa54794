"""An erased run on the Hugging Face hub: the pipeline at the repository's root, its model card, the patch and the evidence."""

import logging
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined] # of the client that it uses

from erase.export import require_finished
from erase.folder import require_intact
from erase.reading import read_json
from erase.telling import NO_PICTURES, is_hub_name
from pipelines.check import PICKLES

if TYPE_CHECKING:
    from eval.audit import Audit

logger = logging.getLogger(__name__)

# report.html and audit.html stay behind: they show what was to be forgotten
EVIDENCE = ("patch.safetensors", "mask.safetensors", "metrics.jsonl", "results.json", "config.yaml")
AUDIT = "audit/audit.json"
PICTURE = re.compile(r"!\[[^\]]*\]\((audit/[^)]*)\)")
STAYS_BEHIND = "Pictures that show the concept are not uploaded: a dash stands in their place."


def push(run: Path, repo_id: str, *, private: bool, note: Callable[[str], None] = logger.warning) -> str:
    """Upload a run in one commit, all of it or nothing; the address. Raises ValueError if it cannot be done.

    A run that the gate has not released goes up all the same, and `note` is told so. The card goes up with what the audit that
    goes with it says, also where README.md tells of an earlier one. Of the audit's pictures those go up that
    the card shows and that are the model's own without the concept: no picture of the base, and none in which it was seen.
    """
    from eval.audit_report import card_with_audit, read_audit

    _check(run, repo_id)
    operations = [
        CommitOperationAdd(path.relative_to(run / "model").as_posix(), str(path))
        for path in sorted((run / "model").rglob("*"))
        if path.is_file() and path.suffix not in PICKLES and path.name != "README.md"
    ]
    text, record = card_with_audit((run / "README.md").read_text(encoding="utf-8"), run), read_audit(run)
    doubts = doubts_about(run, record)
    beside = [name for name in (*EVIDENCE, *audit_files(run, record, text)) if (run / name).is_file()]
    operations += [CommitOperationAdd(name, str(run / name)) for name in beside]
    operations.append(CommitOperationAdd("README.md", card_for_hub(text, repo_id, beside).encode()))
    api = HfApi()
    try:
        repo = api.create_repo(repo_id, private=private, exist_ok=True)
        if private and not api.repo_info(repo.repo_id).private:
            raise ValueError(
                f"{repo_id} exists and is public, which --private does not change: make it private in its settings on the hub, "
                "give another name, or leave out --private."
            )
        if doubts:
            note(f"warning: {run} is uploaded anyway, although the gate has not released it: {'; '.join(doubts)}.")
        api.create_commit(repo.repo_id, operations, commit_message="Erased model, card, patch and evidence")
    except HfHubHTTPError as error:
        answer = getattr(error.response, "status_code", "no")
        raise ValueError(
            f"the hub refused {repo_id} (status {answer}): does the token have write access to it? "
            "`hf auth whoami` says whose token it is."
        ) from error
    except (HTTPError, OSError) as error:
        raise ValueError(f"the hub cannot be reached ({type(error).__name__}): try again with network access.") from error
    return str(repo)


def _check(run: Path, repo_id: str) -> None:
    require_finished(run)
    if not (run / "README.md").is_file():
        raise ValueError(f"{run} has no README.md: give the folder of a finished run.")
    for name in ("model", *(name for name in EVIDENCE if (run / name).is_file())):
        require_intact(run / name)
    if not is_hub_name(repo_id):
        raise ValueError(f"{repo_id!r} is not the name of a repository; give OWNER/NAME.")
    if constants.HF_HUB_OFFLINE:
        raise ValueError("HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it.")
    if not get_token():
        raise ValueError("there is no access token for the hub; run `hf auth login` with a token that has write access.")


def doubts_about(run: Path, record: "Audit | None") -> list[str]:
    """Why the gate has not released a run's model, a clause each; none if its whole audit passed and it did not collapse."""
    from eval.audit_gate import attacks
    from eval.audit_report import verdict

    results, found = run / "results.json", []
    if record is None:
        found.append(f"there is no audit of its model (`erase audit {run}` makes one)")
    elif not record.passed or record.partial or not attacks(list(record.lines)):
        found.append(f"its audit {verdict(record)}")
    elif record.quick:
        found.append("its audit made few tries only (--quick)")
    elif record.asked.changes:
        found.append(f"the settings or limits of its audit were not the gate's ({', '.join(record.asked.changes)})")
    collapse = read_json(results).get("collapse") if results.is_file() else None
    if collapse and not collapse["passed"]:
        found.append(f"the collapse gate failed: {NO_PICTURES}")
    return found


def audit_files(run: Path, record: "Audit | None", card: str) -> list[str]:
    """Of the audit of the run's model: its record, and those pictures of the card that may be shown."""
    if record is None:
        return []
    pictures = [] if record.private else dict.fromkeys(PICTURE.findall(card))
    return [AUDIT, *(name for name in pictures if _without_concept(run, name))]


def _without_concept(run: Path, name: str) -> bool:
    """Whether an audit's picture is the erased model's and the detector did not see the concept in it."""
    if not re.fullmatch(r"audit/[a-z0-9-]+/\w+/model/\d+\.png", name, re.ASCII):
        return False
    try:
        seen = read_json((run / name).with_name("outcome.json"))["seen"]
        return seen[int(Path(name).stem)] is False
    except (ValueError, KeyError, IndexError, TypeError):
        return False


def card_for_hub(card: str, repo_id: str, uploaded: Collection[str] = ()) -> str:
    """A run's model card with the pipeline at the root of the repository, pointing to nothing that stays behind.

    That is the local pages, and the audit's pictures that are not `uploaded`: the base's, and of the model's those that show
    the concept.
    """
    card = card.replace('from_pretrained("model")', f'from_pretrained("{repo_id}")').replace("`model/`:", "This repository:")
    card = card.replace(
        "95 % intervals, pictures and the mask's audit: `report.html`", "95 % intervals and audit: `results.json`"
    )
    record = f"; every figure: `{AUDIT}`" if AUDIT in uploaded else ""
    card = re.sub(r"; every [^;\n]* and the pictures: `audit/audit\.html`", record, card)
    card = PICTURE.sub(lambda found: found[0] if found[1] in uploaded else "-", card)
    card = card.replace("the base above, the model below in the same try.", f"the model. {STAYS_BEHIND}")
    return re.sub(r"^\| base \|(?: - \|)+\n+", "", card, flags=re.MULTILINE)
