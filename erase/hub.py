"""An erased run on the Hugging Face hub: the pipeline at the repository's root, its model card, the patch and the evidence."""

import re
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined] # of the client that it uses

from erase.folder import require_intact
from pipelines.check import PICKLES

# report.html stays behind: it shows what was to be forgotten
EVIDENCE = ("patch.safetensors", "mask.safetensors", "metrics.jsonl", "results.json", "config.yaml")


def push(run: Path, repo_id: str, *, private: bool) -> str:
    """Upload a run in one commit, all of it or nothing; the address. Raises ValueError if it cannot be done."""
    _check(run, repo_id)
    operations = [
        CommitOperationAdd(path.relative_to(run / "model").as_posix(), str(path))
        for path in sorted((run / "model").rglob("*"))
        if path.is_file() and path.suffix not in PICKLES and path.name != "README.md"
    ]
    operations += [CommitOperationAdd(name, str(run / name)) for name in EVIDENCE if (run / name).is_file()]
    card = card_for_hub((run / "README.md").read_text(encoding="utf-8"), repo_id)
    operations.append(CommitOperationAdd("README.md", card.encode()))
    api = HfApi()
    try:
        repo = api.create_repo(repo_id, private=private, exist_ok=True)
        api.create_commit(repo.repo_id, operations, commit_message="Erased model, card, patch and evidence")
    except HfHubHTTPError as error:
        answer = getattr(error.response, "status_code", "no")
        raise ValueError(
            f"the hub refused {repo_id} (status {answer}): has the token write access to it? `hf auth whoami` says whose it is."
        ) from error
    except (HTTPError, OSError) as error:
        raise ValueError(f"the hub cannot be reached ({type(error).__name__}): try again with network access.") from error
    return str(repo)


def _check(run: Path, repo_id: str) -> None:
    for name in ("model", "README.md", "patch.safetensors"):
        if not (run / name).exists():
            raise ValueError(f"{run} has no {name}: give the folder of a finished run.")
    for name in ("model", *EVIDENCE):
        require_intact(run / name)
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repo_id, re.ASCII):
        raise ValueError(f"{repo_id!r} is not a repository's name; give OWNER/NAME.")
    if constants.HF_HUB_OFFLINE:
        raise ValueError("HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it.")
    if not get_token():
        raise ValueError("there is no access token for the hub; run `hf auth login` with a token that may write.")


def card_for_hub(card: str, repo_id: str) -> str:
    """A run's model card with the pipeline at the root of the repository and without its local page."""
    card = card.replace('from_pretrained("model")', f'from_pretrained("{repo_id}")').replace("`model/`:", "This repository:")
    return card.replace(
        "95 % intervals, pictures and the mask's audit: `report.html`", "95 % intervals and audit: `results.json`"
    )
