"""Every command in the README is one that works."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line[2:].split("  #")[0].strip() for line in README.splitlines() if line.startswith("$ ")]


def test_the_readme_has_its_commands_and_every_link_leads_somewhere() -> None:
    assert {"make demo", "erase --concept dog", "erase concepts"} <= set(COMMANDS)
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


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
