"""Source code as what it does: without what is said about it."""

import ast
from functools import cache
from pathlib import Path

from erase.files import hash_of

ROOT = Path(__file__).parent.parent


@cache
def code_alone(source: str) -> str:
    """The source without comments and docstrings, evenly spaced: what is said about code decides nothing."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            node.body = [line for line in node.body if not _is_text(line)] or [ast.Pass()]
    return ast.unparse(tree)


def _is_text(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)


@cache
def code_of(modules: tuple[str, ...], packages: tuple[str, ...], root: Path = ROOT) -> str:
    """A hash of the modules' code and of all that it imports, directly or not, from these packages (or modules)."""
    found: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        places = [root.joinpath(*name.split(".")).with_suffix(".py"), root.joinpath(*name.split("."), "__init__.py")]
        path = next((place for place in places if place.is_file()), None)  # none: a name within a module
        if path is not None and name not in found and any(f"{name}.".startswith(f"{package}.") for package in packages):
            found[name] = code_alone(path.read_text(encoding="utf-8"))
            waiting += imported(found[name])
    return hash_of(sorted(found.items()))


@cache
def imported(source: str) -> tuple[str, ...]:
    """Every module that a source names in an import, and what it takes from it, which may be a module too."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, "imports name the whole module"
            found += (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
    return tuple(found)
