"""Every command of docs/launching.md, up to the point where it would start something."""

import re
import shlex

import pytest

from launch.__main__ import main
from tests.launch.programs import ROOT

PAGE = (ROOT / "docs" / "launching.md").read_text()
COMMANDS = re.findall(r"^    python -m launch (.*)$", PAGE.replace("\\\n", ""), re.MULTILINE)


def test_each_launcher_has_its_commands():
    assert {command.split()[0] for command in COMMANDS} == {"local", "slurm", "tpu", "k8s"}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_accepted(command, capsys, monkeypatch):
    if command.startswith("tpu ") and not (ROOT / ".git").exists():
        pytest.skip("the code that is sent is a commit, and this is no git repository")
    monkeypatch.chdir(ROOT)
    words = shlex.split(command)
    assert main([*words, *["--dry-run"] * ("--dry-run" not in words)]) == 0
    shown = capsys.readouterr().out
    assert "main.py" in shown or "-m launch local" in shown
