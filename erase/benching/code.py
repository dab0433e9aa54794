"""What the rows of the table were made by: a hash of the code that decides how a model is trained."""

from functools import cache
from pathlib import Path

from erase.files import hash_of
from erase.source import code_alone

TRAINING = ("train", "best", "salient", "saliency", "data")  # modules that decide how a model is trained, beside the methods


@cache
def code_hash() -> str:
    """A hash of the code that decides how a model is trained: rows of other code do not count."""
    here = Path(__file__).parent.parent
    files = [*sorted((here / "methods").glob("*.py")), *(here / f"{name}.py" for name in TRAINING)]
    return hash_of([code_alone(path.read_text(encoding="utf-8")) for path in files])
