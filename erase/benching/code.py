"""What the rows of the table were made by: a hash of the code that decides how a model is trained."""

import ast
from functools import cache
from pathlib import Path

from erase.files import hash_of

TRAINING = ("train", "best", "salient", "saliency", "data")  # modules that decide how a model is trained, beside the methods


@cache
def code_hash() -> str:
    """A hash of the code that decides how a model is trained: rows of other code do not count."""
    here = Path(__file__).parent.parent
    files = [*sorted((here / "methods").glob("*.py")), *(here / f"{name}.py" for name in TRAINING)]
    return hash_of([code_alone(path.read_text(encoding="utf-8")) for path in files])


def code_alone(source: str) -> str:
    """The source without comments and docstrings, evenly spaced: what is said about code decides nothing."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            node.body = [line for line in node.body if not _is_text(line)] or [ast.Pass()]
    return ast.unparse(tree)


def _is_text(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)
