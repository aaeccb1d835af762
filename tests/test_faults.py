"""Whatever happens to a run, what it had is kept, and one sentence says what happened."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from conftest import ROOT, TINY, Command, environment, started
from omegaconf import DictConfig
from test_bad_input import refused

import stn
from stn import cli
from stn.errors import InputError
from stn.training import train

QUIET = ["callbacks.progress=null", "callbacks.summary=null", "optimizer=plain_sgd"]
RUN = [*TINY, *QUIET, "hydra.run.dir=run"]
IMPORTABLE = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}


class Fault(pl.Callback):
    """Sends a signal to its own process, or removes a folder, in a phase of the run."""

    def __init__(self, phase: str, number: int | None = None, removes: str | None = None) -> None:
        def fault(*anything: Any, **more: Any) -> None:
            if removes:
                shutil.rmtree(removes, ignore_errors=True)
            if number:
                os.kill(os.getpid(), number)
                time.sleep(0.05)  # until it is delivered

        setattr(self, phase, fault)


def fault(phase: str, **what: Any) -> list[str]:
    return [
        "+callbacks.fault._target_=test_faults.Fault",
        f"+callbacks.fault.phase={phase}",
        *(f"+callbacks.fault.{key}={value}" for key, value in what.items()),
    ]


PHASES = ["setup", "on_fit_start", "on_train_start", "on_train_batch_end", "on_validation_start", "on_train_epoch_end"]
PHASES += ["on_save_checkpoint", "on_fit_end", "on_test_batch_end", "on_test_end"]


@pytest.mark.parametrize(
    ("name", "phase"),
    [
        *(("SIGTERM", phase) for phase in PHASES),
        *((name, phase) for name in ("SIGHUP", "SIGINT") for phase in ("on_fit_start", "on_train_batch_end")),
    ],
)
def test_a_signal_ends_every_phase_in_order(name: str, phase: str, command: Command, tmp_path: Path) -> None:
    number = signal.Signals[name]
    found = command(*RUN, *fault(phase, number=int(number)), variables=IMPORTABLE)
    assert found.returncode == 128 + number, found.stderr
    assert "Traceback" not in found.stderr and found.stderr.count("stn.train: ") == 1, found.stderr
    assert found.stderr.endswith(f"stn.train: {'interrupted' if name == 'SIGINT' else 'terminated'}\n")
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["parameters"] > 0
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert ("it goes on with: python -m stn.train resume=run" in found.stdout) == last.exists()
    if last.exists():
        torch.load(last, weights_only=True)


def answer_signals() -> None:
    """In a new process: whatever started the tests may ignore them."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_before_anything_is_there(name: str, tmp_path: Path) -> None:
    """While Python still imports."""
    program = subprocess.Popen(
        [sys.executable, "-m", "stn.train", *RUN],
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=answer_signals,
    )
    time.sleep(1.5)
    program.send_signal(signal.Signals[name])
    _, errors = program.communicate(timeout=60)
    assert program.returncode in (128 + signal.Signals[name], -signal.Signals[name]), errors
    assert "Traceback" not in errors, errors


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_is_not_swallowed_by_a_library_that_is_imported(name: str) -> None:
    number = signal.Signals[name]

    def end(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(number, end)
    finished = False
    try:
        with pytest.raises(KeyboardInterrupt), cli.undisturbed():
            with contextlib.suppress(KeyboardInterrupt):  # as some do
                os.kill(os.getpid(), number)
            finished = True
        assert finished and signal.getsignal(number) is end
    finally:
        signal.signal(number, before)


def test_nohup_is_respected(command: Command, tmp_path: Path) -> None:
    script = "import signal, runpy, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
    script += "sys.argv = ['train', *sys.argv[1:]]; runpy.run_module('stn.train', run_name='__main__')"
    settings = [*RUN, *fault("on_train_start", number=int(signal.SIGHUP)), "callbacks.warps=null"]
    variables = environment() | IMPORTABLE
    done = subprocess.run([sys.executable, "-c", script, *settings], cwd=tmp_path, env=variables, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert "test_accuracy" in json.loads((tmp_path / "run" / "metrics.json").read_text())


@pytest.mark.parametrize("output", ["a closed pipe", "a full disk", "nothing"])
def test_a_run_does_not_need_its_output(output: str, tmp_path: Path) -> None:
    line = f"{sys.executable} -m stn.train {' '.join(RUN)} callbacks.warps=null "
    line += {"a closed pipe": "2>&1 | true", "a full disk": "> /dev/full 2>&1", "nothing": ">&- 2>&-"}[output]
    subprocess.run(line, shell=True, cwd=tmp_path, env=environment(), check=False)
    assert "test_accuracy" in json.loads((tmp_path / "run" / "metrics.json").read_text())


def test_a_terminal_may_have_ascii_alone(command: Command, tmp_path: Path) -> None:
    assert command(*RUN).returncode == 0
    ascii_alone = environment() | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    line = [sys.executable, "-m", "stn.evaluate", "run"]
    found = subprocess.run(line, cwd=tmp_path, env=ascii_alone, capture_output=True, encoding="ascii")
    assert found.returncode == 0 and "transformer scale" in found.stdout and "?" in found.stdout, found.stderr


@pytest.mark.parametrize("removed", ["run/figures", "run/checkpoints"])
@pytest.mark.parametrize("phase", ["on_train_epoch_start", "on_train_epoch_end", "on_fit_end"])
def test_a_folder_that_is_removed_does_not_end_a_run(
    phase: str, removed: str, command: Command, tmp_path: Path
) -> None:
    found = command(*RUN, *fault(phase, removes=removed), variables=IMPORTABLE)
    assert found.returncode == 0 and "Traceback" not in found.stderr, found.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["epochs"] == 2 and "test_accuracy" in metrics


@pytest.mark.parametrize("phase", ["on_train_batch_end", "on_fit_end"])
def test_a_run_whose_folder_vanishes_says_so(phase: str, command: Command) -> None:
    found = command(*RUN, *fault(phase, removes="run"), variables=IMPORTABLE)
    assert "Traceback" not in found.stderr, found.stderr
    if found.returncode:
        assert found.returncode == 2
        assert found.stderr.startswith("stn.train: the run's folder cannot be written any more: "), found.stderr


def test_a_picture_that_cannot_be_saved_does_not_end_a_run(command: Command, tmp_path: Path) -> None:
    (tmp_path / "blocked").touch()  # a file in the place of the folder
    found = command(*RUN, *(f"callbacks.{name}.folder=blocked/figures" for name in ("warps", "history", "dashboard")))
    assert found.returncode == 0 and "could not be drawn" in found.stdout + found.stderr, found.stderr
    assert "test_accuracy" in json.loads((tmp_path / "run" / "metrics.json").read_text())


def test_a_job_that_dies_does_not_take_the_sweep_along(command: Command, tmp_path: Path) -> None:
    kill = fault("on_train_start", number="9,0")
    found = command("-m", *TINY, *QUIET, *kill, "hydra.sweep.dir=sweep", variables=IMPORTABLE)
    assert found.returncode == 1
    assert "stn.train: the job in sweep/0 was ended by SIGKILL\n" in found.stderr and "Traceback" not in found.stderr
    assert "test_accuracy" in json.loads((tmp_path / "sweep" / "1" / "metrics.json").read_text())


@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL"])
def test_a_sweep_that_is_ended_ends_its_job_in_order(name: str, command: Command, tmp_path: Path) -> None:
    endless = ("-m", *TINY, *QUIET, "trainer.max_epochs=100000", "seed=1,2", "hydra.sweep.dir=sweep")
    program = started(tmp_path, "train", endless)
    job, patience = tmp_path / "sweep" / "0", time.monotonic() + 120
    while not (job / "checkpoints" / "last.ckpt").exists() and time.monotonic() < patience:
        time.sleep(0.1)
    assert program.pid
    os.kill(program.pid, signal.Signals[name])
    program.join(60)
    assert program.exitcode == {"SIGTERM": 143, "SIGKILL": -9}[name], (tmp_path / ".stderr").read_text()
    while not (job / "metrics.json").exists() and time.monotonic() < patience:
        time.sleep(0.1)
    epochs = json.loads((job / "metrics.json").read_text())["epochs"]
    assert not (tmp_path / "sweep" / "1").exists()
    assert command("resume=sweep/0", f"trainer.max_epochs={epochs + 1}").returncode == 0


def test_two_runs_do_not_share_a_folder(composed: Callable[..., DictConfig], tmp_path: Path) -> None:
    class Second(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            with pytest.raises(InputError, match="another process is training in"):
                train(composed(*TINY, *QUIET, "overwrite=true"))

    assert train(composed(*TINY, *QUIET), [Second()])["epochs"] == 2


def test_a_clock_that_jumps_changes_no_figure(
    composed: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [2e9]

    def jumping() -> float:
        now[0] -= 1e5
        return now[0]

    monkeypatch.setattr(time, "time", jumping)
    started_at = time.monotonic()
    metrics = train(composed(*TINY, *QUIET))
    assert 0 < metrics["seconds"] < time.monotonic() - started_at
    assert stn.Run.open(tmp_path / "run").epoch == metrics["tested_epoch"]


def test_the_programs_own_handler_of_sigterm_is_kept(composed: Callable[..., DictConfig]) -> None:
    """Lightning's waits for processes that wait for this one."""
    found = []

    class Look(pl.Callback):
        def look(self, *anything: Any) -> None:
            found.append(signal.getsignal(signal.SIGTERM))

        on_train_batch_end = on_validation_batch_end = on_test_batch_end = look

    def own(*anything: Any) -> None:
        pass

    before = signal.signal(signal.SIGTERM, own)
    try:
        train(composed(*TINY, *QUIET), [Look()])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(found) > 5 and set(found) == {own}


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_a_process_that_ends_ends_the_others(name: str, command: Command, tmp_path: Path) -> None:
    number = int(signal.Signals[name])
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "data.batch_size=10"]
    tiny = [setting for setting in TINY if not setting.startswith(("trainer=", "data.batch_size"))]
    kill = ["+callbacks.fault._target_=test_faults.Second", f"+callbacks.fault.number={number}"]
    begun = time.monotonic()
    found = command(*tiny, *QUIET, *two, *kill, "hydra.run.dir=run", variables=IMPORTABLE)
    assert time.monotonic() - begun < 90
    assert found.returncode == 1 and "Traceback" not in found.stderr, found.stderr
    assert "stn.train: another process of this training has ended; its own error says why\n" in found.stderr
    assert "it goes on with: python -m stn.train resume=run" in found.stdout
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["epochs"] == 1
    assert not list((tmp_path / "run").glob("train_*.log")), "the second process writes nothing"


class Second(pl.Callback):
    """Ends the second process in the second epoch."""

    def __init__(self, number: int) -> None:
        self.number = number

    def on_train_batch_end(self, trainer: pl.Trainer, *step: Any) -> None:
        if trainer.global_rank == 1 and trainer.current_epoch == 1:
            os.kill(os.getpid(), self.number)
            time.sleep(0.05)


def test_one_of_several_processes_does_not_train_alone(command: Command, tmp_path: Path) -> None:
    refused(command(*RUN, variables={"LOCAL_RANK": "2"}), "this is process 2 of several")
    assert not (tmp_path / "run").exists()


def test_a_launcher_starts_one_run(tmp_path: Path) -> None:
    """Every process of torchrun has the same config, and one of them writes. One validation image is enough for two."""
    tiny = [value for value in TINY if not value.startswith(("trainer=", "data.batch_size", "data.val_fraction"))]
    two = [
        "trainer=ddp",
        "trainer.accelerator=cpu",
        "trainer.devices=2",
        "data.batch_size=10",
        "data.val_fraction=0.02",
        "hydra.run.dir=run",
    ]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "stn.train"]
    found = subprocess.run(
        [*launch, *tiny, *QUIET, *two],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    folder = tmp_path / "run"
    assert found.stdout.count("everything is in") == 1
    assert json.loads((folder / "metrics.json").read_text())["epochs"] == 2
    assert (folder / "train.log").read_text().count("epoch 1, ") == 1, "the second process writes nothing"
