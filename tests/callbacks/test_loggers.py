"""What TensorBoard and other loggers get."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from conftest import TINY
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from torch import nn
from torch.utils.tensorboard import SummaryWriter

import stn.callbacks.dashboard
from stn.callbacks import Dashboard
from stn.callbacks.warp_gallery import shown_epochs
from stn.config import compose
from stn.errors import InputError
from stn.hyperparameters import hyperparameters, varied
from stn.resuming import check_paths, resumed
from stn.tensorboard_logger import tag
from stn.training import train

QUIET = ["callbacks.progress=null", "callbacks.summary=null"]
Compose = Callable[..., DictConfig]


@given(last=st.integers(1, 400), every=st.integers(1, 20))
def test_ten_epochs_are_shown_evenly_with_the_first_and_the_last(last: int, every: int) -> None:
    if every > last:
        return
    found = sorted(shown_epochs(last, every))
    validated = list(range(every, last + 1, every))
    assert len(found) == min(10, len(validated)) and set(found) <= set(validated)
    assert (found[0], found[-1]) == (validated[0], validated[-1])
    gaps = np.diff(found)
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= every


def summaries(folder: Path) -> list[tuple[int, Any]]:
    """Everything in the event files of a run, with its step."""
    files = sorted(folder.glob("events.out.tfevents.*"))
    events = [event for path in files for event in EventFileLoader(str(path)).Load()]
    return [(event.step, value) for event in events for value in event.summary.value] + [
        (event.step, event) for event in events if event.HasField("graph_def")
    ]


class Interrupt(pl.Callback):
    """Ctrl-C in the third epoch."""

    def on_train_batch_end(self, trainer: pl.Trainer, *step: Any) -> None:
        if trainer.current_epoch == 2:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of twelve epochs, which was interrupted in the third and resumed."""
    folder = tmp_path_factory.mktemp("outputs") / "run"
    with pytest.raises(KeyboardInterrupt):
        train(compose([*TINY, *QUIET, "trainer.max_epochs=12"], folder), [Interrupt()])
    config, checkpoint = resumed(str(folder))
    train(config, checkpoint=checkpoint)
    return folder


def test_ten_pictures_of_twelve_are_logged_and_all_are_kept(run: Path) -> None:
    steps = {step for step, value in summaries(run) if getattr(value, "tag", "") == "warps/transformer"}
    assert len(steps) == 10 and min(steps) == 1 and max(steps) == 23  # two steps an epoch
    assert len(list((run / "figures" / "warps").glob("*.png"))) == 12


def test_a_resumed_run_has_nothing_twice(run: Path) -> None:
    seen = [(step, getattr(value, "tag", "graph")) for step, value in summaries(run)]
    once = ["graph", "wrong_or_right/confusion_matrix", "custom_scalars__config__", "test/accuracy"]
    once += ["_hparams_/experiment", "_hparams_/session_start_info", "_hparams_/session_end_info"]
    for name in once:
        assert [tag for _, tag in seen].count(name) == 1, name
    assert (run / "projector_config.pbtxt").read_text().count("tensor_name") == 3
    vectors = np.loadtxt(run / "projector" / "2" / "vectors.tsv")
    labels = (run / "projector" / "2" / "labels.tsv").read_text().splitlines()
    assert len(vectors) == len(labels) - 1 == 20 and labels[0] == "class\tpredicted"
    with Image.open(run / "projector" / "1" / "sprite.png") as sprite:
        assert sprite.size == (5 * 32, 5 * 32)


def test_the_first_groups_of_charts_are_accuracy_and_loss(run: Path) -> None:
    groups = sorted({value.tag.partition("/")[0] for _, value in summaries(run) if hasattr(value, "tag")})
    shown = [group for group in groups if not group.startswith(("_", "custom_scalars"))]
    assert shown[:2] == ["accuracy", "loss"] and "epoch" not in shown and "summary" not in shown
    assert [tag(name) for name in ("train/accuracy", "val/loss", "train/loss_step", "learning_rate/head", "mine")] == [
        *["accuracy/train", "loss/val", "loss/train_step", "optimizer/learning_rate/head", "mine"]
    ]


def test_hyperparameters_are_flat_and_those_that_people_vary() -> None:
    overrides = ["experiment=demo", "model/warp=tps", "optimizer.lr=0.5", "model.classifier.dropout=0.3", "seed=7"]
    found = hyperparameters(compose([*overrides, "callbacks.warps.images=3"]), [*overrides, "callbacks.warps.images=3"])
    assert found == {
        **{"model": "ConvNet", "warp": "ThinPlateSpline", "placement": "input", "data": "Shapes", "batch_size": 64},
        **{"epochs": 10, "optimizer": "adamw", "lr": 0.5, "seed": 7, "tta": "none", "model.classifier.dropout": 0.3},
    }
    assert set(varied(overrides)) & found.keys() == {"warp", "lr", "model.classifier.dropout", "seed"}


def test_the_confusion_matrix_is_that_of_the_tested_weights(
    composed: Compose, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    counts: list[list[list[int]]] = []
    drawn = stn.callbacks.dashboard.draw_confusion
    monkeypatch.setattr(
        stn.callbacks.dashboard, "draw_confusion", lambda found, *more: counts.append(found) or drawn(found, *more)
    )
    metrics = train(
        composed(
            *TINY, *QUIET, "callbacks=best_epoch", "callbacks.warps=null", "optimizer.lr=0.3", "trainer.max_epochs=4"
        )
    )
    assert metrics["best_val_accuracy"] != metrics["last_val_accuracy"]
    matrix = torch.tensor(counts[0])
    assert (
        len(counts) == 1 and matrix.sum() == 12 and matrix.trace() / 12 == pytest.approx(metrics["best_val_accuracy"])
    )


def test_a_graph_that_cannot_be_traced_does_not_end_a_training(
    composed: Compose, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: SummaryWriter, *anything: Any) -> None:
        raise torch.jit.TracingCheckError("no", "way")

    monkeypatch.setattr(SummaryWriter, "add_graph", fail)
    metrics = train(composed(*TINY, *QUIET, "callbacks.warps=null"))
    assert "test_accuracy" in metrics and "the graph of the network could not be drawn" in caplog.text


@pytest.mark.parametrize("placement", ["none", "deep", "parallel", "features"])
def test_every_placement_has_a_dashboard(
    placement: str, composed: Compose, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(composed(*TINY, *QUIET, f"model.placement={placement}", "tta=mirror", "trainer.max_epochs=1"))
    assert "could not be drawn" not in caplog.text
    count = (tmp_path / "run" / "projector_config.pbtxt").read_text().count("tensor_name")
    assert count == {"none": 2, "deep": 3, "parallel": 4, "features": 2}[placement]


def all_conv(in_channels: int, image_size: int, num_classes: int) -> nn.Sequential:
    """A network without a linear layer, for images of 32 x 32 pixels."""
    head = nn.Sequential(nn.Conv2d(4, num_classes, 7), nn.Flatten())
    return nn.Sequential(nn.Conv2d(in_channels, 4, 5, stride=4), nn.ReLU(), head)


def test_a_network_without_a_linear_layer_has_a_projector_too(composed: Compose, tmp_path: Path) -> None:
    config = composed(*TINY, *QUIET, "callbacks.warps=null", "trainer.max_epochs=1", "model.placement=none")
    config.model.classifier = {"_target_": f"{__name__}.all_conv", "_partial_": True}
    assert "test_accuracy" in train(config)
    assert (tmp_path / "run" / "projector_config.pbtxt").read_text().count("tensor_name") == 1


def test_no_projector_of_no_images() -> None:
    with pytest.raises(ValueError, match="images must be 1 or more, not 0"):
        Dashboard("figures", images=0)


MLFLOW = ["logger=mlflow", "logger.mlflow.tracking_uri=file:run/store", "callbacks.dashboard=null"]


def test_mlflow_has_settings_metrics_and_pictures_of_one_run_also_after_resuming(
    composed: Compose, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    client = pytest.importorskip("mlflow").MlflowClient
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # the light package has no database
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(composed(*TINY, *QUIET, *MLFLOW, "trainer.max_epochs=4"), [Interrupt()])
    config, checkpoint = resumed(str(tmp_path / "run"))
    metrics = train(config, checkpoint=checkpoint)
    store = client(f"file:{tmp_path / 'run' / 'store'}")
    (found,) = store.search_runs([store.get_experiment_by_name("stn").experiment_id])
    assert found.data.params["warp"] == "Affine" and found.data.params["epochs"] == "4"
    assert found.data.metrics["test/accuracy"] == pytest.approx(metrics["test_accuracy"])
    assert {point.step for point in store.get_metric_history(found.info.run_id, "val/accuracy")} == {1, 3, 5, 7}
    pictures = [path.name for path in (tmp_path / "run" / "mlflow").rglob("*.png")]
    assert len({name.partition("+timestamp")[0] for name in pictures}) == 4


@pytest.mark.parametrize(("choice", "missing"), [("wandb", "wandb"), ("mlflow", "mlflow"), ("mlflow", "sqlalchemy")])
def test_a_missing_package_is_told_with_its_extra(
    choice: str, missing: str, composed: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stn.errors.find_spec", lambda name: None if name == missing else object())
    with pytest.raises(InputError, match=rf"^{missing} is not installed: .*\[{choice}\]"):
        train(composed(*TINY, *QUIET, f"logger={choice}"))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("logger.mlflow.tracking_uri", "http://stranger", "resuming would send there what is logged"),
        ("logger.mlflow.tracking_uri", "sqlite:////elsewhere/mlflow.db", "set MLFLOW_TRACKING_URI to it"),
        ("logger.mlflow.artifact_location", "/elsewhere", "and resuming would write there"),
        ("logger.wandb.settings", {"base_url": "http://stranger"}, "is not followed on resuming"),
    ],
)
def test_resuming_sends_nothing_to_a_stranger(
    key: str, value: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = compose([f"logger={key.split('.')[1]}"], tmp_path)
    OmegaConf.resolve(config)
    check_paths(config, tmp_path)
    OmegaConf.update(config, key, value, force_add=True)
    with pytest.raises(InputError, match=said):
        check_paths(config, tmp_path)
    if key.endswith("tracking_uri"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", value)
        check_paths(config, tmp_path)
