"""Whether a model is a Retrain, which never saw a concept: the yardstick of the tables and of the audit."""

from pathlib import Path

from erase.concepts import names_within
from erase.reading import read_json


def check_retrained(model: Path, concept: str) -> None:
    """Raises ValueError unless the model's record of its training says that it never saw the concept, or a part of it."""
    path = model / "training.json"
    told = read_json(path) if path.is_file() else {}
    lists = [told.get(key) for key in ("without", "without_style")]
    left_out = [str(name) for names in lists if isinstance(names, list) for name in names]
    if not any(names_within(name, concept) for name in left_out):
        raise ValueError(
            f"{model} is not a model trained without {concept} (its training.json does not say so): make it with "
            f"`erase --concept {concept!r} --method retrain`."
        )
