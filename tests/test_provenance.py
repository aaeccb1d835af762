"""A run says what gave its figures."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, Command

from stn import provenance


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


def test_a_checkout_of_something_else_around_the_package_is_not_the_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / ".venv" / "site-packages" / "stn"
    package.mkdir(parents=True)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setattr(provenance, "__file__", str(package / "provenance.py"))
    assert provenance.commit() is None
