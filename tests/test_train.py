"""The program end to end, by the commands a user types."""

import csv
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from conftest import ROOT, TINY, Command, started
from omegaconf import DictConfig
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from stn.classifier import Classifier
from stn.data import AffineDistortion, ElasticDistortion, ProjectiveDistortion
from stn.data.distortion import Distortion
from stn.layers import SpatialTransformer
from stn.run import Run
from stn.training import train, warp_for

TIMES = {"seconds", "seconds_per_epoch", "images_per_second"}


def figures(folder: Path) -> dict[str, float]:
    return json.loads((folder / "metrics.json").read_text())


def test_a_run_leaves_all_there_is_to_know(command: Command, tmp_path: Path) -> None:
    found = command(*TINY)
    assert found.returncode == 0, found.stderr
    (folder,) = (tmp_path / "outputs").glob("*/*")
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {
        "config.yaml",
        "metrics.csv",
        "metrics.json",
        "checkpoints/last.ckpt",
        "figures/accuracy.png",
        "figures/warps_transformer.gif",
        "figures/warps/transformer_epoch_001.png",
        "figures/warps/transformer_epoch_002.png",
    } <= names
    assert not any(name.startswith(".hydra") or name == "error.txt" for name in names)

    metrics = figures(folder)
    assert metrics["parameters"] == 39_884 and metrics["epochs"] == 2
    assert metrics["tested_checkpoint"] == "checkpoints/last.ckpt"
    with (folder / "metrics.csv").open() as file:
        accuracies = [float(row["val/accuracy"]) for row in csv.DictReader(file) if row["val/accuracy"]]
    assert metrics["last_val_accuracy"] == pytest.approx(accuracies[-1])
    assert metrics["best_val_accuracy"] == pytest.approx(max(accuracies))
    assert accuracies[int(metrics["best_epoch"]) - 1] == pytest.approx(max(accuracies))
    assert metrics["images_per_second"] == pytest.approx(40 * 2 / metrics["seconds"], rel=0.01)

    for shown in ("test accuracy", "images per second", "SpatialTransformer", str(folder.relative_to(tmp_path))):
        assert shown in found.stdout, shown
    assert f"tensorboard --logdir {folder.relative_to(tmp_path)}\n" in found.stdout
    events = EventAccumulator(str(folder))
    events.Reload()
    groups = {tag.partition("/")[0] for tag in events.Tags()["scalars"]}
    assert groups == {"accuracy", "loss", "test", "transformer", "transformer_band", "transformer_theta"}
    assert "warps/transformer" in events.Tags()["images"]


def test_the_best_checkpoint_is_what_was_tested(composed: Callable[..., DictConfig], tmp_path: Path) -> None:
    from stn.data import ShapesDataModule

    train(composed(*TINY, "callbacks=best_epoch", "trainer.max_epochs=4", "optimizer=plain_sgd", "optimizer.lr=0.3"))
    data = ShapesDataModule(train_images=60, test_images=20)
    data.setup("test")
    ((images, labels),) = data.test_dataloader()
    losses = {}
    for name in ("best", "last"):
        run = Run.open(tmp_path / "run" / "checkpoints" / f"{name}.ckpt")
        with torch.no_grad():
            losses[name] = F.cross_entropy(run.classifier(images), labels).item()
    metrics = figures(tmp_path / "run")
    assert run.epoch == 4
    assert metrics["best_epoch"] < 4 and losses["best"] != pytest.approx(losses["last"], rel=3e-4)
    assert metrics["test_loss"] == pytest.approx(losses["best"], rel=1e-4)


BEST = "callbacks=best_epoch"
GROWING = ["model=wide", "model.classifier.widths=[4]", "model.classifier.convolutions=[1]"]


@pytest.mark.parametrize(
    ("settings", "tested"),
    [
        ([BEST, "callbacks.checkpoint.monitor=epoch"], 4),
        ([BEST, "callbacks.checkpoint.monitor=epoch", "callbacks.checkpoint.mode=min"], 2),
        ([BEST, "~callbacks.checkpoint"], 5),
        (["callbacks=minimal"], 5),
        (GROWING, 5),
    ],
)
def test_the_epoch_that_was_tested_is_told(
    settings: list[str], tested: int, composed: Callable[..., DictConfig], tmp_path: Path
) -> None:
    """Of five epochs, of which the second and the fourth are validated."""
    five = ["trainer.max_epochs=5", "trainer.check_val_every_n_epoch=2"]
    metrics = train(composed(*TINY, *five, *settings))
    assert metrics["epochs"] == 5 and metrics["seconds"] == pytest.approx(5 * metrics["seconds_per_epoch"])
    assert metrics == figures(tmp_path / "run") and metrics["tested_epoch"] == tested
    if kept := metrics.get("tested_checkpoint"):
        assert Run.open(tmp_path / "run").epoch == tested
        assert torch.load(tmp_path / "run" / kept, weights_only=True)["stn"]["epoch"] == tested


def test_weights_are_not_kept_twice(composed: Callable[..., DictConfig], tmp_path: Path) -> None:
    assert train(composed(*TINY, *GROWING))["tested_checkpoint"] == "checkpoints/last.ckpt"
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["last.ckpt"]


class Stop(pl.Callback):
    """Ends training as Lightning's timer does, after the first step of the second epoch."""

    def on_train_batch_end(self, trainer: pl.Trainer, *step: Any) -> None:
        trainer.should_stop = trainer.current_epoch == 1


class Interrupt(pl.Callback):
    """Ctrl-C before the first step."""

    def setup(self, *state: Any, **stage: Any) -> None:
        raise KeyboardInterrupt


def test_speed_counts_the_steps_that_were_taken(composed: Callable[..., DictConfig]) -> None:
    metrics = train(composed(*TINY), [Stop()])
    assert metrics["epochs"] == 2
    assert metrics["images_per_second"] == pytest.approx(60 / metrics["seconds"], rel=0.01)


def test_an_interrupt_before_the_first_step_is_reported(composed: Callable[..., DictConfig], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(composed(*TINY), [Interrupt()])
    assert figures(tmp_path / "run") == {"parameters": 39_884}


def test_a_seed_repeats_a_run_and_another_does_not(composed: Callable[..., DictConfig], tmp_path: Path) -> None:
    found = []
    for seed in (1, 1, 2):
        train(composed(*TINY, "callbacks=minimal", "logger=none", "overwrite=true", f"seed={seed}"))
        metrics = figures(tmp_path / "run")
        found.append({name: value for name, value in metrics.items() if name not in TIMES})
    assert found[0] == found[1] != found[2]


def test_how_validation_is_batched_changes_no_weight(composed: Callable[..., DictConfig], tmp_path: Path) -> None:
    found = []
    for size in (1000, 5):
        metrics = train(composed(*TINY, "optimizer=adamw", "overwrite=true", f"data.eval_batch_size={size}"))
        weights = Run.open(tmp_path / "run" / "checkpoints" / "last.ckpt").classifier.state_dict()
        found.append((metrics["last_val_accuracy"], weights))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(value, found[1][1][name]) for name, value in found[0][1].items())


def test_a_sweep_runs_every_combination(command: Command, tmp_path: Path) -> None:
    found = command("-m", *TINY, "model=convnet_small,lenet", "seed=1,2", "trainer.max_epochs=1", "callbacks=minimal")
    assert found.returncode == 0, found.stderr
    (sweep,) = (tmp_path / "outputs").glob("*/*-sweep")
    parameters = [figures(sweep / str(job))["parameters"] for job in range(4)]
    assert parameters == [39_884, 39_884, 802_492, 802_492]


def test_a_failing_job_says_so_at_once_and_the_sweep_goes_on(command: Command, tmp_path: Path) -> None:
    found = command("-m", *TINY, "data.batch_size=1000,20", "trainer.max_epochs=1", "callbacks=minimal")
    assert found.returncode == 2
    (sweep,) = (tmp_path / "outputs").glob("*/*-sweep")
    sentence = "stn.train: data: batch_size 1000 is larger than the training set of 48 images"
    kept = (sweep / "0" / "error.txt").read_text()
    assert kept.startswith(sentence) and "Traceback" in kept
    assert found.stderr.count(sentence) == 1 and "Traceback" not in found.stderr
    assert (sweep / "1" / "metrics.json").is_file() and not (sweep / "1" / "error.txt").exists()


def test_ctrl_c_ends_in_order_and_keeps_what_there_is(tmp_path: Path) -> None:
    program = started(tmp_path, "train", (*TINY, "trainer.max_epochs=100000", "hydra.run.dir=run"))
    third = tmp_path / "run" / "figures" / "warps" / "transformer_epoch_003.png"
    patience = time.monotonic() + 120
    while not third.exists() and time.monotonic() < patience:
        time.sleep(0.1)
    assert program.pid
    os.kill(program.pid, signal.SIGINT)
    program.join(120)
    said = (tmp_path / ".stdout").read_text() + (tmp_path / ".stderr").read_text()
    assert program.exitcode == 130, said
    assert "Traceback" not in said and "stn.train: interrupted\n" in said
    metrics = figures(tmp_path / "run")
    assert 1 <= metrics["epochs"] < 100000 and "test_accuracy" not in metrics
    run = Run.open(tmp_path / "run")
    assert run.metrics == metrics and run.checkpoint.name == "last.ckpt"
    with Image.open(tmp_path / "run" / "figures" / "warps_transformer.gif") as film:
        assert film.n_frames >= 2
    assert (tmp_path / "run" / "figures" / "accuracy.png").is_file()
    with (tmp_path / "run" / "metrics.csv").open() as file:
        assert any(row["val/accuracy"] for row in csv.DictReader(file))


class Losses(pl.Callback):
    """The loss of every step, in losses-<rank>.txt."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        with Path(f"losses-{trainer.global_rank}.txt").open("a") as file:
            file.write(f"{outputs['loss'].item()}\n")


@pytest.mark.parametrize("optimizer", ["plain_sgd", "muon"])
def test_two_processes_train_as_one_with_the_same_global_batch(
    optimizer: str, command: Command, tmp_path: Path
) -> None:
    """Every step sees the same images: all of them, in one batch or in one half for each process."""
    tiny = [value for value in TINY if not value.startswith(("trainer=", "model=", "data.batch_size"))]
    settings = [
        *[*tiny, "model=lenet", f"optimizer={optimizer}", "optimizer.lr=0.05", "trainer.max_epochs=3"],
        *["trainer.accelerator=cpu", "trainer.precision=32-true", "+callbacks.losses._target_=test_train.Losses"],
    ]
    importable = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    ddp = ["trainer=ddp", "trainer.devices=2", "data.batch_size=12"]
    found = command(*settings, *ddp, "hydra.run.dir=two", variables=importable)
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("test accuracy") == 1 and "sync_dist" not in found.stderr
    shares = [[float(loss) for loss in (tmp_path / f"losses-{rank}.txt").read_text().split()] for rank in (0, 1)]
    (tmp_path / "losses-0.txt").unlink()
    found = command(*settings, "data.batch_size=24", "hydra.run.dir=one", variables=importable)
    assert found.returncode == 0, found.stderr
    alone = [float(loss) for loss in (tmp_path / "losses-0.txt").read_text().split()]
    assert len(alone) == 6
    assert [sum(pair) / 2 for pair in zip(*shares, strict=True)] == pytest.approx(alone, rel=1e-3)
    one, two = (figures(tmp_path / name) for name in ("one", "two"))
    for name in ("parameters", "epochs", "best_epoch", "tested_epoch", "last_val_accuracy", "test_accuracy"):
        assert two[name] == pytest.approx(one[name]), name
    assert two["test_loss"] == pytest.approx(one["test_loss"], rel=1e-3)
    assert two["test_transformer_pose_error_pixels"] == pytest.approx(one["test_transformer_pose_error_pixels"], 1e-3)
    assert two["images_per_second"] == pytest.approx(48 * 3 / two["seconds"], rel=0.01)
    statistics = []
    for name in ("one", "two"):
        with (tmp_path / name / "metrics.csv").open(newline="") as file:
            rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
        statistics.append([row for row in rows if "val/loss" in row])
    assert any(name.startswith("transformer/") for name in statistics[0][0])
    for alone_row, two_row in zip(*statistics, strict=True):
        assert two_row == pytest.approx(alone_row, rel=1e-2, abs=1e-3)
    weights = [
        Run.open(tmp_path / name / "checkpoints" / "last.ckpt", allow="test_train.").classifier.state_dict()
        for name in ("one", "two")
    ]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize("placement", ["deep", "parallel", "shared"])
def test_images_grow_wherever_transformers_read_them(placement: str, composed: Callable[..., DictConfig]) -> None:
    tiny = [value for value in TINY if not value.startswith("model=")]
    small = ["model.classifier.widths=[8,8,8]", "callbacks.resizing.until=1", "logger=none"]
    sides = set()

    class Sides(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *batch: Any) -> None:
            first = next(part for part in pl_module.modules() if isinstance(part, SpatialTransformer))
            sides.add(first.output_size)

    train(composed("experiment=fast94", *tiny, *small, f"model.placement={placement}"), [Sides()])
    assert (20, 20) in sides


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["optimizer.fused=false"], "sgd"),
        (["~optimizer.fused"], "sgd fused"),
        (["+trainer.gradient_clip_val=1.0"], "sgd"),
        (["optimizer=muon"], "muon"),
    ],
)
def test_the_first_line_says_which_optimizer_it_is(
    settings: list[str], said: str, composed: Callable[..., DictConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    train(composed(*TINY, *settings, "trainer.max_epochs=1", "callbacks=minimal", "logger=none"))
    assert f"not compiled, {said}\n" in capsys.readouterr().out


def test_deterministic_training_works_and_says_so(
    composed: Callable[..., DictConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    train(composed(*TINY, "trainer.deterministic=true", "trainer.max_epochs=1"))
    torch.use_deterministic_algorithms(False)
    assert re.search(
        r"32-true on cpu, 1 thread, channels-last, not compiled, sgd fused, deterministic\n", capsys.readouterr().out
    )


def test_the_pose_error_falls_in_training(composed: Callable[..., DictConfig], tmp_path: Path) -> None:
    """From class labels alone the transformer finds where the figures are."""
    small = ["data.train_images=6000", "data.test_images=200", "trainer.max_epochs=4"]
    steady = ["optimizer.schedule=constant", "optimizer.lr=1e-3"]
    train(composed("experiment=pose", "model/warp=similarity", *small, *steady, "trainer=cpu", "logger=csv"))
    with (tmp_path / "run" / "metrics.csv").open() as file:
        found = [row["transformer/pose_error_pixels"] for row in csv.DictReader(file)]
    errors = [float(value) for value in found if value]
    assert len(errors) == 4 and errors[-1] < 0.95 * errors[0]
    assert figures(tmp_path / "run")["test_transformer_pose_error_pixels"] < 0.95 * errors[0]


@pytest.mark.parametrize(
    ("distortion", "words"),
    [
        (AffineDistortion(90), "set model/warp=rotation_classes"),
        (AffineDistortion(180), "set model/warp=rotation_classes model.warp.span=360 model.warp.classes=24"),
        (AffineDistortion(45, aspect=1.3, shear=0.3), "set model/warp=affine tta=null"),
        (ProjectiveDistortion(), "set model/warp=projective tta=null"),
        (ElasticDistortion(), "set model/warp=tps tta=null"),
    ],
)
def test_the_plainest_warp_that_undoes_a_distortion_is_named(distortion: Distortion, words: str) -> None:
    _, figures = distortion(torch.zeros(64, 3, 32, 32, dtype=torch.uint8), torch.Generator().manual_seed(0))
    assert warp_for(figures, is_poses=True) == words
    assert warp_for(figures, is_poses=False) == words.removesuffix(" tta=null")


def test_a_run_warns_of_nothing(command: Command) -> None:
    found = command(*TINY, "trainer.max_epochs=1")
    assert ".py:" not in found.stdout + found.stderr


def test_no_file_of_an_earlier_run_is_overwritten(command: Command, tmp_path: Path) -> None:
    for _ in range(2):
        assert command(*TINY, "trainer.max_epochs=1", "callbacks=minimal", "logger=none").returncode == 0
    assert len(list((tmp_path / "outputs").glob("*/*/metrics.json"))) == 2


class Profile(pl.Callback):
    """Names of the operations from the third step to the last."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, index: int) -> None:
        if index == 2:
            self.profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
            self.profiler.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        if index + 1 == trainer.num_training_batches:
            self.profiler.stop()
            self.names = {event.key for event in self.profiler.key_averages()}


@pytest.mark.parametrize("settings", ["model=wide", "model=lenet", "model=lenet data/distortion=elastic"])
def test_a_training_step_waits_for_nothing(
    settings: str, composed: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading a number back from the device would hold up a GPU in every step: a value, a branch, a size."""
    profile = Profile()
    monkeypatch.setattr(Classifier, "_check_finite", lambda module, losses: None)  # once for many steps, else
    # On a CPU, where it costs nothing, the extremes of the points are looked at.
    monkeypatch.setattr("stn.layers.sampling.bounded", lambda points: points.nan_to_num(0.0).clamp(-1e4, 1e4))
    # The metrics of each step are updated in the next; a logger would write them, and wait.
    every = ["trainer.log_every_n_steps=1", "logger=none", "callbacks.progress=null"]
    train(composed(*TINY, *every, *settings.split(), "trainer.max_epochs=1", "data.batch_size=10"), [profile])
    assert "aten::convolution_backward" in profile.names
    assert not profile.names & {"aten::_local_scalar_dense", "aten::_unique2", "aten::nonzero"}


def test_what_trains_is_compiled_and_what_is_watched_is_not(
    composed: Callable[..., DictConfig], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    modes, steps, compile_module = [], [], torch.nn.Module.compile

    def count(graph: torch.fx.GraphModule, example: Any) -> Any:
        return lambda *inputs: steps.append(graph) or graph(*inputs)

    def compiled(self: torch.nn.Module, mode: str) -> None:
        modes.append(mode)
        compile_module(self, backend=count)

    monkeypatch.setattr(torch.nn.Module, "compile", compiled)
    train(composed(*TINY, "compile=reduce-overhead", "trainer.max_epochs=1"))
    assert modes == ["reduce-overhead"] and "compiled (reduce-overhead)" in capsys.readouterr().out
    assert len(steps) == 2  # of training: validation, pictures and test are watched
    torch._dynamo.reset()


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
def test_compiled_training_runs(composed: Callable[..., DictConfig]) -> None:
    train(composed(*TINY, "compile=default", "trainer.max_epochs=1"))
    torch._dynamo.reset()


def test_channels_last_is_a_choice(composed: Callable[..., DictConfig], capsys: pytest.CaptureFixture[str]) -> None:
    for choice, said in (("true", True), ("false", False)):
        train(composed(*TINY, f"channels_last={choice}", "trainer.max_epochs=1", "overwrite=true"))
        assert ("channels-last" in capsys.readouterr().out) == said


@pytest.mark.parametrize(("placement", "padding"), [("input", "border"), ("input", "reflection"), ("none", "border")])
def test_divergence_ends_in_a_sentence(placement: str, padding: str, command: Command, tmp_path: Path) -> None:
    """With a transformer this was a segmentation fault: the sampler's gradient reads anywhere for a NaN."""
    large = ["data=shapes", "data.train_images=600", "data.test_images=100", "data.batch_size=64", "model=convnet"]
    wild = [
        "optimizer=plain_sgd",
        "optimizer.lr=1e12",
        "trainer.max_epochs=2",
        "callbacks.progress=null",
        f"model.placement={placement}",
    ]
    if placement != "none":
        wild.append(f"model.transformer.padding={padding}")
    found = command(*large, *wild, "hydra.run.dir=run")
    assert found.returncode == 1, found.stderr
    sentences = [line for line in found.stderr.splitlines() if line.startswith("stn.train: ")]
    assert len(sentences) == 1 and "Traceback" not in found.stderr, found.stderr
    assert sentences[0].startswith("stn.train: training has diverged: ") and " in epoch " in sentences[0]
    assert "Traceback" in (tmp_path / "run" / "error.txt").read_text()
    assert "test_accuracy" not in figures(tmp_path / "run")


def test_it_says_that_few_images_choose_the_tested_epoch(command: Command) -> None:
    sentence = "the tested epoch is chosen by 12 held-out images"
    found = command(*TINY, "callbacks=best_epoch")
    assert sentence in found.stdout + found.stderr
    found = command(*TINY, "hydra.run.dir=last")
    assert sentence not in found.stdout + found.stderr


@pytest.mark.parametrize("experiment", ["does_it_help", "upright"])
def test_the_recipes_warn_of_no_turn(
    experiment: str, composed: Callable[..., DictConfig], caplog: pytest.LogCaptureFixture
) -> None:
    sizes = [setting for setting in TINY if setting.startswith("data.")]
    settings = [f"experiment={experiment}", "data=shapes", *sizes, "data.rotation=0", "arm=transformer"]
    train(composed(*settings, "trainer=cpu", "trainer.max_epochs=1", "callbacks=minimal"))
    assert "turned by" not in caplog.text
