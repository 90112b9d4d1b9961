"""What tests start in the place of main.py, and where."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
DUMMY = Path(__file__).parent / "dummy.py"
MAIN = ROOT / "main.py"
# A few steps of a network that compiles fast.
TINY = (
    "--config=configs/digits.py:smoke",
    "--config.train.steps=4",
    "--config.train.batch_size=8",
    "--config.checkpoint.every=2",
    "--config.log.every=1",
    "--config.log.preview_every=0",
    "--config.model.channels=8",
    "--config.model.norm_groups=8",
    "--config.model.channel_mult=(1,)",
    "--config.model.attention_resolutions=()",
)


def launcher(name: str, *arguments: str | os.PathLike) -> list[str]:
    """The command line of a launcher."""
    return [sys.executable, "-m", "launch", name, *map(os.fspath, arguments)]


def fake(folder: Path, name: str, script: str) -> Path:
    """A command that stands in for a real one, in a folder for PATH."""
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(script)
    file.chmod(0o755)
    return folder
