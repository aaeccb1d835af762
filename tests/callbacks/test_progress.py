"""Progress as it is read: a line for each epoch, numbered from 1."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY, Command
from omegaconf import DictConfig

from stn.callbacks.progress import duration
from stn.training import train

LINE = r"epoch (\d) of (\d): accuracy \d+\.\d\d%, loss \d\.\d{3}(, validation accuracy \d+\.\d\d%)?, [\d.]+ s(.*)"


def lines(text: str) -> list[re.Match[str]]:
    return [found for found in map(re.compile(LINE).fullmatch, text.splitlines()) if found]


def test_without_a_terminal_there_is_one_line_an_epoch(command: Command, tmp_path: Path) -> None:
    found = command(*TINY, "trainer.max_epochs=3", "trainer.check_val_every_n_epoch=2", "hydra.run.dir=run")
    assert found.returncode == 0, found.stderr
    assert [line.group(1, 2) for line in lines(found.stdout)] == [("1", "3"), ("2", "3"), ("3", "3")]
    assert [bool(line[3]) for line in lines(found.stdout)] == [False, True, False]
    assert [line[4].endswith(" s left") for line in lines(found.stdout)] == [True, True, False]
    assert "it/s" not in found.stdout + found.stderr and len(found.stdout.splitlines()) < 40
    assert len((tmp_path / "run" / "train.log").read_text()) < 1500


def test_on_a_terminal_the_lines_stand_above_a_bar(
    composed: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    train(composed(*TINY, "callbacks.warps=null", "callbacks.dashboard=null"))
    said = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().out)  # of colours and places
    assert [line[1] for line in lines(said)] == ["1", "2"]
    assert "epoch 2 of 2 ━" in said and "Epoch 0" not in said


def test_null_turns_it_off(composed: Callable[..., DictConfig], capfd: pytest.CaptureFixture[str]) -> None:
    train(composed(*TINY, "callbacks.progress=null", "callbacks.warps=null", "callbacks.dashboard=null"))
    said = capfd.readouterr()
    assert "test accuracy" in said.out and not lines(said.out) and "it/s" not in said.out + said.err


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(4.25, "4.2 s"), (59.7, "59.7 s"), (59.96, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")],
)
def test_a_duration_is_told_as_people_tell_it(seconds: float, said: str) -> None:
    assert duration(seconds) == said
