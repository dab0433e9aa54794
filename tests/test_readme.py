"""README's commands work; those of every document are ones that the command line takes, and links lead somewhere."""

import importlib.util
import itertools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.exceptions import TyperException

from erase.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line[2:].split("  #")[0].strip() for line in README.splitlines() if line.startswith("$ ")]
FOLDERS = ("docs", "erase", "eval", "pipelines", "configs", "benchmarks", "licenses")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(found for name in FOLDERS for found in (ROOT / name).rglob("*.md"))])
FENCE = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)


def without_code(text: str) -> str:
    """The document without its fenced blocks and code spans."""
    return re.sub(r"(`+)[^`]+?\1", "", FENCE.sub("", text))


def anchors(text: str) -> set[str]:
    """Where a link into the document can lead: its headings, as GitHub names them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", plain.lower()).strip().replace(" ", "-")
        numbered = (f"{name}-{k}" for k in itertools.count(1))
        found.add(next(one for one in itertools.chain([name], numbered) if one not in found))
    return found


def shown(text: str) -> Iterator[str]:
    """The lines of the document's code blocks, fenced or indented; one that goes on after a backslash is one."""
    blocks = [match.group() for match in FENCE.finditer(text)]
    blocks += re.findall(r"(?:^|\n)\n((?: {4}\S.*\n)+)", FENCE.sub("", text))
    for block in blocks:
        yield from re.sub(r"\\\n\s*", "", block).splitlines()


def commands(text: str) -> Iterator[list[str]]:
    """Every `erase` and `python -m` command of the code blocks, as words."""
    for line in shown(text):
        told = re.sub(r"^(\$ |- run: )", "", line.strip())
        if re.match(r"(accelerate launch -m )?erase(\.cli)? |python -m ", told):
            words = [word for word in shlex.split(told, comments=True) if word != "..."]
            for divided, part in itertools.groupby(words, lambda word: word in ("&&", "|", ">")):
                if not divided and (own := list(part))[0] in ("erase", "accelerate", "python"):
                    yield own


GIVEN = sorted({shlex.join(words) for document in DOCUMENTS for words in commands(document.read_text(encoding="utf-8"))})


def test_what_is_read_from_a_document() -> None:
    text = (
        "# A `b`, c_d\n\n```console\n$ erase x \\\n    --y  # z\n# no heading\n```\n\n"
        "## [A](u) B, c_d\n\n    erase v && make w\n\n## A b c_d\n"
    )
    assert [list(words) for words in commands(text)] == [["erase", "x", "--y"], ["erase", "v"]]
    assert anchors(text) == {"a-b-c_d", "a-b-c_d-1", "a-b-c_d-2"}
    assert "no heading" not in without_code(text) and "[A](u)" in without_code(text)


def test_the_readme_has_its_commands() -> None:
    assert {"make demo", "erase --concept dog", "erase concepts"} <= set(COMMANDS)
    assert {"erase --concept dog", "erase audit run --json", "erase compare runs/dog runs/church"} <= set(GIVEN)
    assert "accelerate launch -m erase --concept church --model path/to/diffusers-folder" in GIVEN


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(text)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        place = document.parent / path if path else document
        assert place.exists(), target
        assert not anchor or anchor in anchors(place.read_text(encoding="utf-8")), target


@pytest.mark.parametrize(
    "given", ["erase audit x --no-such", "erase no-such x", "erase apply a --to", "python -m eval.no_such"]
)
def test_a_command_that_is_not_taken_is_found(given: str) -> None:
    with pytest.raises((TyperException, AssertionError)):
        test_a_command_of_a_document_is_one_that_is_taken(given)


@pytest.mark.parametrize("given", GIVEN)
def test_a_command_of_a_document_is_one_that_is_taken(given: str) -> None:
    """Its options and arguments are read by the command line's own parser; nothing is done."""
    words = shlex.split(given)
    if words[0] == "python":
        assert importlib.util.find_spec(words[2]), given
        return
    words = words[words.index("erase" if "erase" in words else "erase.cli") + 1 :]
    command = typer.main.get_command(app)
    while words and words[0] in (known := getattr(command, "commands", {})):
        command = known[words.pop(0)]
    assert not hasattr(command, "commands") or not words or words[0].startswith("-"), f"no such command: {words[0]}"
    command.make_context("erase", words)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_runs(command: str, tmp_path: Path) -> None:
    """Runs as written where that takes seconds; long ones up to the point where the work would begin."""
    words, options = shlex.split(command, comments=True), []
    python = sys.executable
    if words[0] == "make":
        words = ["make", "-n", "-C", str(ROOT), *words[1:]]
    elif words[:2] == ["python", "-m"]:
        words = [python, *words[1:], "--help"]
    elif words[0] == "erase" and words[1] not in ("--concept", "concepts"):  # on what earlier commands made: only its options
        command = words[1 : 3 if words[1] in ("bench", "linear", "sisa", "forest") else 2]
        options = [word for word in words if word.startswith("--")]
        words = [python, "-m", "erase.cli", *command, "--help"]
    elif words[0] == "erase":
        words = [
            python,
            "-m",
            "erase.cli",
            *words[1:],
            *(["--dry-run"] if "--concept" in words and "--dry-run" not in words else []),
        ]
    done = subprocess.run(
        words,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert all(option in done.stdout for option in options)
