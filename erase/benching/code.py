"""What the rows of the table were made by: a hash of the code that decides how a method trains a model."""

from functools import cache
from pathlib import Path

from erase.files import hash_of
from erase.source import ROOT, code_of

# modules that decide how a model is trained, beside the method's own and those of methods that it uses
TRAINING = tuple(f"erase.{name}" for name in ("train", "best", "salient", "saliency", "data"))


@cache
def code_hash(method: str, root: Path = ROOT) -> str:
    """A hash of the code that decides how a method trains a model: rows of other code do not count."""
    return hash_of([code_of((f"erase.methods.{method}",), ("erase.methods",), root), code_of(TRAINING, TRAINING, root)])
