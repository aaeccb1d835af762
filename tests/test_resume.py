"""An interrupted run goes on in place, and ends as one that was never interrupted: bit for bit on a CPU."""

import csv
import json
import os
import shutil
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from conftest import TINY, Command, started
from omegaconf import DictConfig
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_bad_input import refused

import stn
from stn.checkpoint_io import DurableCheckpointIO
from stn.config import compose
from stn.errors import DivergedError, InputError
from stn.resuming import resumed
from stn.runs import unfinished
from stn.training import train

TIMES = {"seconds", "seconds_per_epoch", "images_per_second"}
SMALL = [setting for setting in TINY if not setting.startswith(("model=", "trainer.max_epochs"))]
SMALL += ["trainer.max_epochs=4", "trainer.log_every_n_steps=1", "callbacks.progress=null", "callbacks.summary=null"]
WIDE = ["model=wide", "model.classifier.widths=[8,8]", "model.classifier.convolutions=[1,2]"]
RECIPES = {
    "AdamW, dropout": ["model=convnet_small", "optimizer=adamw", "data.shift=2"],
    "SGD, batch norm, best epoch": [*WIDE, "optimizer=sgd", "callbacks=best_epoch", "data.cutout=4", "data.flip=true"],
    "Muon, average, growing images, CutMix": [*WIDE, "optimizer=muon", "data.cutmix=0.5"],
}


class Interrupt(pl.Callback):
    """Ctrl-C in the middle of the third epoch."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.current_epoch == 2 and batch_idx == 0:
            raise KeyboardInterrupt


def interrupted(settings: list[str], folder: Path) -> Path:
    """A run that was interrupted in its third epoch."""
    with pytest.raises(KeyboardInterrupt):
        train(compose(settings, folder), [Interrupt()])
    return folder


def assert_same_run(one: Path, other: Path) -> None:
    """Two runs have the same weights, metrics, curves and pictures, and the same events."""
    assert_same_files(one, other)
    assert_same_events(one, other)


def assert_same_files(one: Path, other: Path) -> None:
    """Two runs have the same weights, metrics, curves and pictures."""
    first, second = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (one, other))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "current_model_state"):
        assert str(first.get(part)) == str(second.get(part)), part
    for name, value in first["state_dict"].items():
        assert torch.equal(value, second["state_dict"][name]), name
    metrics = [json.loads((run / "metrics.json").read_text()) for run in (one, other)]
    assert [{k: v for k, v in found.items() if k not in TIMES} for found in metrics[:1]] == [
        {k: v for k, v in found.items() if k not in TIMES} for found in metrics[1:]
    ]
    assert metrics[0].keys() == metrics[1].keys()
    rows = []
    for run in (one, other):
        with (run / "metrics.csv").open(newline="") as file:
            rows.append([{key: value for key, value in row.items() if value} for row in csv.DictReader(file)])
    assert rows[0] == rows[1]
    pictures = sorted(path.relative_to(one) for path in (one / "figures").rglob("*.png") if path.name != "accuracy.png")
    assert len(pictures) == 5  # what is read in four epochs, and the confusion matrix
    for path in pictures:
        assert (one / path).read_bytes() == (other / path).read_bytes(), path
    with Image.open(other / "figures" / "warps_transformer.gif") as film:
        assert film.n_frames == 4


def assert_same_events(one: Path, other: Path) -> None:
    """Two runs have the same scalars, images and histograms in TensorBoard."""
    tags = []
    for run in (one, other):
        events = EventAccumulator(str(run), size_guidance={"images": 0, "histograms": 0})
        events.Reload()
        found: dict[str, Any] = {
            tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]
        }
        found["warps"] = [(event.step, event.encoded_image_string) for event in events.Images("warps/transformer")]
        found["theta"] = [event.step for event in events.Histograms("transformer/theta_0")]
        assert len(found["warps"]) == len(found["theta"]) == 4
        tags.append(found)
    assert tags[0] == tags[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[str]], Path]:
    """Gives a run of some settings that was not interrupted, which is trained once."""
    runs: dict[str, Path] = {}

    def trained(settings: list[str]) -> Path:
        name = " ".join(settings)
        if name not in runs:
            runs[name] = tmp_path_factory.mktemp("whole") / "run"
            train(compose(settings, runs[name]))
        return runs[name]

    return trained


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_resumed_run_ends_as_one_that_was_not_interrupted(
    recipe: list[str], whole: Callable[[list[str]], Path], tmp_path: Path
) -> None:
    folder = interrupted([*SMALL, *recipe], tmp_path / "interrupted")
    config, checkpoint = resumed(str(folder))
    metrics = train(config, checkpoint=checkpoint)
    assert metrics["epochs"] == 4 and metrics["images_per_second"] == pytest.approx(
        40 * 4 / metrics["seconds"], rel=0.01
    )
    assert_same_run(whole([*SMALL, *recipe]), folder)


def wait_for(path: Path, program: BaseProcess) -> None:
    patience = time.monotonic() + 120
    while not path.exists() and program.is_alive() and time.monotonic() < patience:
        time.sleep(0.02)
    assert path.exists()


@pytest.mark.parametrize("delay", [0.1, 0.25])
def test_a_killed_run_is_resumed(
    delay: float, command: Command, whole: Callable[[list[str]], Path], tmp_path: Path
) -> None:
    """SIGKILL within the second epoch, so many seconds after the first."""
    recipe = [*SMALL, *RECIPES["AdamW, dropout"], "data.train_images=600", "trainer.log_every_n_steps=10"]
    program = started(tmp_path, "train", (*recipe, "hydra.run.dir=killed"))
    wait_for(tmp_path / "killed" / "checkpoints" / "last.ckpt", program)
    time.sleep(delay)
    program.kill()
    program.join()
    found = command("resume=killed")
    assert found.returncode == 0, found.stderr
    assert not list((tmp_path / "outputs").glob("*")), "a folder of its own"
    assert_same_run(whole(recipe), tmp_path / "killed")


def test_sigterm_ends_in_order_and_says_how_to_go_on(command: Command, tmp_path: Path) -> None:
    endless = (*TINY, "trainer.max_epochs=100000", "optimizer=plain_sgd", "hydra.run.dir=run")
    program = started(tmp_path, "train", endless)
    wait_for(tmp_path / "run" / "figures" / "warps" / "transformer_epoch_003.png", program)
    program.terminate()
    program.join(timeout=60)
    said, errors = ((tmp_path / name).read_text() for name in (".stdout", ".stderr"))
    assert program.exitcode == 143, errors
    assert "Traceback" not in errors and "stn.train: terminated\n" in errors
    assert "it goes on with: python -m stn.train resume=run\n" in said
    epochs = json.loads((tmp_path / "run" / "metrics.json").read_text())["epochs"]
    found = command("resume=run", f"trainer.max_epochs={epochs + 2}")
    assert found.returncode == 0, found.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["epochs"] == epochs + 2 and "test_accuracy" in metrics
    (went_on,) = json.loads((tmp_path / "run" / "environment.json").read_text())["resumed"]
    assert went_on["command"] == f"python -m stn.train resume=run trainer.max_epochs={epochs + 2}"
    assert stn.Run.open(tmp_path / "run").config.trainer.max_epochs == epochs + 2


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was interrupted in its third epoch of four."""
    return interrupted([*SMALL, *RECIPES["SGD, batch norm, best epoch"]], tmp_path_factory.mktemp("runs") / "stopped")


@pytest.fixture
def folder(stopped: Path, tmp_path: Path) -> Path:
    return shutil.copytree(stopped, tmp_path / "run")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["resume=nowhere"], "nowhere does not exist: give a run's folder, a checkpoint, or latest"),
        (["resume=latest"], "latest: there is no run with a checkpoint in"),
        (
            ["resume=run", "optimizer.lr=1"],
            "optimizer.lr=1 cannot be set on resuming, which takes the run's own config",
        ),
        (["resume=run", "trainer.max_epochs=9"], "the schedule one_cycle ends after 4 epochs"),
        (["resume=empty"], "empty has no config.yaml, so it cannot be resumed"),
        (["resume=photos"], "photos has no config.yaml, so it cannot be resumed"),
        (["resume=kept_none"], "kept_none has no checkpoint in checkpoints/, so it cannot be resumed"),
        (["resume=sweep"], "sweep holds a sweep: go on with it by -m resume=sweep"),
        (["-m", "resume=run"], "run is a single run: leave out -m"),
    ],
)
def test_what_cannot_be_resumed(arguments: list[str], said: str, folder: Path, command: Command) -> None:
    (folder.parent / "empty").mkdir()
    (folder.parent / "sweep").mkdir()
    (folder.parent / "sweep" / "multirun.yaml").touch()
    (folder.parent / "photos").mkdir()
    (folder.parent / "photos" / "error.txt").write_text("mine")
    shutil.copytree(folder, folder.parent / "kept_none", ignore=lambda *names: ["checkpoints"])
    before = contents(folder.parent)
    refused(command(*arguments), said)
    after = contents(folder.parent)
    assert {path: after.get(path) for path in before} == before
    assert not [path for path in after.keys() - before.keys() if path.parts[0] != "multirun"]


def contents(folder: Path) -> dict[Path, bytes]:
    """The contents of all files in a folder."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_is_not_resumed(command: Command, tmp_path: Path) -> None:
    assert command(*TINY, "callbacks.warps=null", "hydra.run.dir=run").returncode == 0
    before = (tmp_path / "run" / "metrics.json").read_text()
    refused(command("resume=run"), "run is finished after 2 epochs: there is nothing to resume")
    assert (tmp_path / "run" / "metrics.json").read_text() == before


class Look(pl.Callback):
    """Looks while it trains at what the folder says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.said = unfinished(self.folder)


def test_a_finished_run_that_gets_more_epochs_is_unfinished_until_it_has_them(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(compose([*SMALL, *RECIPES["AdamW, dropout"], "optimizer.schedule=constant"], folder))
    before = (folder / "config.yaml").read_bytes()
    with pytest.raises(InputError, match=r"trainer\.max_epochs=3 cannot be set on resuming: .* trained for 4 epochs"):
        resumed(str(folder), ["trainer.max_epochs=3"])
    assert (folder / "config.yaml").read_bytes() == before and unfinished(folder) is None
    more = ["trainer.max_epochs=6"]
    config, checkpoint = resumed(str(folder), more)
    look = Look(folder)
    with pytest.raises(KeyboardInterrupt):
        train(config, [look, InterruptTest()], checkpoint)
    assert look.said == "not finished"
    assert unfinished(folder) == "not finished, after 6 epochs"
    config, checkpoint = resumed(str(folder))
    assert train(config, checkpoint=checkpoint)["tested_epoch"] == 6 and unfinished(folder) is None
    assert len(json.loads((folder / "environment.json").read_text())["resumed"]) == 2


def test_a_broken_last_checkpoint_gives_way_to_the_one_before(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last = folder / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    config, checkpoint = resumed(str(folder))
    assert checkpoint.name == "best.ckpt" and "last.ckpt cannot be read" in capsys.readouterr().out
    assert train(config, checkpoint=checkpoint)["epochs"] == 4


def test_checkpoints_of_other_names_are_found(folder: Path) -> None:
    for name, written in {"best": 1000, "last": 2000}.items():
        renamed = (folder / "checkpoints" / f"{name}.ckpt").rename(folder / "checkpoints" / f"epoch-{name}.ckpt")
        os.utime(renamed, (written, written))
    assert resumed(str(folder))[1].name == "epoch-last.ckpt"
    assert stn.Run.open(folder).checkpoint.name == "epoch-last.ckpt"


def test_a_folder_with_a_run_is_not_written_over(
    folder: Path, composed: Callable[..., DictConfig], tmp_path: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(InputError, match=r"holds a run already: go on with it by resume=.*, or set overwrite=true"):
        train(composed(*TINY))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    with pytest.raises(InputError, match="batch_size 1000 is larger"):  # cannot begin, so nothing is deleted
        train(composed(*TINY, "overwrite=true", "data.batch_size=1000"))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    metrics = train(composed(*TINY, "overwrite=true", "callbacks=minimal", "logger=none"))
    assert metrics["epochs"] == 2
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert names == {"config.yaml", "environment.json", "metrics.json", "accuracy.png"}


class Overflow(pl.Callback):
    """The last step of the third epoch leaves weights that are not finite."""

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if trainer.current_epoch == 2 and trainer.is_last_batch:
            for group in optimizer.param_groups:
                for weight in group["params"]:
                    weight.grad.fill_(torch.inf)


def test_weights_that_are_not_finite_leave_the_checkpoint_before(
    composed: Callable[..., DictConfig], tmp_path: Path
) -> None:
    with pytest.raises(DivergedError, match=r"training has diverged: net\..* is not finite in epoch 3, at step"):
        train(composed(*TINY, "trainer.max_epochs=4", "trainer.check_val_every_n_epoch=4"), [Overflow()])
    assert stn.Run.open(tmp_path / "run").epoch == 2


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("file write failed")])
def test_a_full_disk_leaves_the_checkpoint_before(
    error: Exception, composed: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saving, calls = torch.save, []

    def full(content: Any, file: Any) -> None:
        calls.append(file)
        if len(calls) > 3:
            file.write(b"half of it")
            raise error
        saving(content, file)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match=r"last.ckpt cannot be written .*; the checkpoint before it is kept"):
        train(composed(*TINY, "trainer.max_epochs=4"))
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["last.ckpt"]
    assert stn.Run.open(tmp_path / "run").epoch == 3


class InterruptTest(pl.Callback):
    """Ctrl-C when all is trained."""

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_run_that_was_interrupted_in_its_test_is_tested(
    recipe: list[str], whole: Callable[[list[str]], Path], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(compose([*SMALL, *recipe], tmp_path / "run"), [InterruptTest()])
    config, checkpoint = resumed(str(tmp_path / "run"))
    assert train(config, checkpoint=checkpoint)["test_accuracy"] >= 0
    assert_same_run(whole([*SMALL, *recipe]), tmp_path / "run")
    with pytest.raises(InputError, match="is finished after 4 epochs"):
        resumed(str(tmp_path / "run"))


def test_what_a_kill_between_checkpoint_and_log_loses_is_logged_on_resuming(
    whole: Callable[[list[str]], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = [*SMALL, *RECIPES["AdamW, dropout"]]
    saving = DurableCheckpointIO.save_checkpoint

    def killed(self: DurableCheckpointIO, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        saving(self, checkpoint, path, storage_options)
        if checkpoint["epoch"] == 1 and Path(path).name == "last.ckpt":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(DurableCheckpointIO, "save_checkpoint", killed)
        train(compose(recipe, tmp_path / "run"))
    config, checkpoint = resumed(str(tmp_path / "run"))
    train(config, checkpoint=checkpoint)
    assert_same_run(whole(recipe), tmp_path / "run")


def test_a_run_that_was_moved_keeps_its_best_checkpoint(folder: Path, stopped: Path) -> None:
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert str(stopped) in str(state["callbacks"])  # the run was copied here from there
    content = (stopped / "checkpoints" / "best.ckpt").read_bytes()
    config, checkpoint = resumed(str(folder))
    assert train(config, checkpoint=checkpoint)["tested_checkpoint"] == "checkpoints/best.ckpt"
    assert (stopped / "checkpoints" / "best.ckpt").read_bytes() == content


def test_a_run_that_was_resumed_can_be_moved(folder: Path, stopped: Path, tmp_path: Path) -> None:
    config, checkpoint = resumed(str(folder))
    with pytest.raises(KeyboardInterrupt):
        train(config, [InterruptTest()], checkpoint)
    assert (folder / "config.yaml").read_text() == (stopped / "config.yaml").read_text()
    moved = folder.rename(tmp_path / "moved")
    assert resumed(str(moved))[1] == moved / "checkpoints" / "last.ckpt"


def test_other_data_are_told(folder: Path) -> None:
    config, checkpoint = resumed(str(folder))
    config.data.rotation = 5
    with pytest.raises(InputError, match=r"the training data are not those that .* was trained on"):
        train(config, checkpoint=checkpoint)


def test_a_state_that_does_not_fit_is_told(folder: Path) -> None:
    last = folder / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    content["optimizer_states"][0]["param_groups"].pop()
    torch.save(content, last)
    config, checkpoint = resumed(str(folder))
    with pytest.raises(InputError, match=r"last.ckpt does not hold the state of a run of this config"):
        train(config, checkpoint=checkpoint)


class Diverge(pl.Callback):
    """Breaks a weight in the second epoch, as long as the rate is above a quarter of the first one."""

    def __init__(self, at_start: bool = False) -> None:
        self.epoch = 0 if at_start else 1
        self.rate: float | None = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        self.rate = self.rate or rate
        if trainer.current_epoch == self.epoch and rate > 0.3 * self.rate:
            with torch.no_grad():
                next(pl_module.parameters()).fill_(torch.nan)


@pytest.mark.parametrize("at_start", [False, True])
@pytest.mark.parametrize("optimizer", ["plain_sgd", "adamw", "muon"])
def test_a_divergence_goes_back_with_half_the_rate(
    optimizer: str, at_start: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*SMALL, *WIDE, f"optimizer={optimizer}", "optimizer.schedule=constant", "on_divergence=restart"]
    metrics = train(compose(settings, tmp_path / "run"), [Diverge(at_start)])
    assert metrics["restarts"] == 2 and metrics["epochs"] == 4 and "test_accuracy" in metrics
    said = capsys.readouterr().out
    for number in (1, 2):
        start = "the start" if at_start else "epoch 1"
        assert f"going back to {start} with half the learning rate ({number} of 3)" in said
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("learning_rate/localization")]
    rates = {int(row["step"]): float(row["learning_rate/localization"]) for row in rows}
    assert len(rates) == len(rows), "a step is there twice"
    first, last = rates[min(rates)], rates[max(rates)]
    assert last == pytest.approx(first if at_start else first / 4)
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["stn"]["restarts"] == 2
    assert "resumed" not in json.loads((tmp_path / "run" / "environment.json").read_text())


def test_a_divergence_that_goes_on_ends_the_run(tmp_path: Path) -> None:
    settings = [*SMALL, *WIDE, "optimizer=plain_sgd", "on_divergence=restart"]
    breaks = Diverge()
    breaks.rate = 1e-9  # never low enough
    with pytest.raises(DivergedError, match=r"training has diverged: .*in epoch 2"):
        train(compose(settings, tmp_path / "run"), [breaks])
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["restarts"] == 3
