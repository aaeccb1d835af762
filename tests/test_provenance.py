"""A run says what gave its figures."""

import json
import subprocess
from pathlib import Path

import torch
from conftest import ROOT, TINY, Command


def test_a_run_keeps_command_commit_machine_and_versions(command: Command, tmp_path: Path) -> None:
    settings = [*TINY, "callbacks=minimal", "callbacks.progress=null", "logger=none", "hydra.run.dir=a run"]
    assert command(*settings).returncode == 0
    found = json.loads((tmp_path / "a run" / "environment.json").read_text())
    assert found["command"] == "python -m stn.train " + " ".join([*settings[:-1], "'hydra.run.dir=a run'"])
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert found["machine"]["cores"] >= found["machine"]["threads"] == 1
    if (ROOT / ".git").exists():
        head = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        assert found["commit"].removesuffix("-dirty") == head.stdout[:12]
