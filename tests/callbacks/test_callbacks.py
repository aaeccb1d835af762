"""The pictures and numbers of a run, from a network whose θ is known."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from conftest import TINY
from omegaconf import DictConfig
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from stn.build import build_trainer
from stn.callbacks import History, ProgressiveResizing, ThetaMonitor, WarpGallery, WeightAverage
from stn.callbacks.warp_gallery import spread_over_classes
from stn.classifier import Classifier
from stn.data import ShapesDataModule
from stn.data.shapes import FIGURES
from stn.figures import GAP, MARGIN, SIDE, TOP, readings, sheet
from stn.layers import ConvLocalization, SpatialTransformer, corners_of
from stn.networks import Normalization

MODEL = {
    "_target_": "stn.placement.build_network",
    "localization": {
        "_target_": "stn.layers.ConvLocalization",
        "_partial_": True,
        "channels": [4],
        "kernels": [5],
        "hidden": 8,
    },
    "warp": {"_target_": "stn.layers.Affine"},
    "transformer": {"_target_": "stn.layers.SpatialTransformer", "_partial_": True},
    "classifier": {"_target_": "stn.networks.ConvNet", "_partial_": True, "channels": [4, 4], "hidden": 8},
}
CLASSES = list(FIGURES)
# No step is taken: θ stays what the test sets.
OPTIMIZER = {"_target_": "stn.optimization.Optimization", "algorithm": "sgd", "lr": 1e-12, "schedule": "constant"}
TURN, SCALE, SHIFT_X, SHIFT_Y = 20.0, 0.5, 0.25, -0.125


def known_theta() -> torch.Tensor:
    cos, sin = SCALE * math.cos(math.radians(TURN)), SCALE * math.sin(math.radians(TURN))
    return torch.tensor([cos, -sin, SHIFT_X, sin, cos, SHIFT_Y])


def fit(folder: Path, callbacks: list[pl.Callback], tta: Any = "none", **options: Any) -> None:
    """Fits a network whose transformer turns, zooms and shifts as is known, with 30 images to validate on."""
    classifier = Classifier(MODEL, OPTIMIZER, CLASSES, tta=tta)
    with torch.no_grad():
        classifier.net.get_submodule("transformer").get_submodule("head").bias.copy_(known_theta())
    settings: dict[str, Any] = {"accelerator": "cpu", "max_epochs": 3, "num_sanity_val_steps": 0} | options
    pl.Trainer(
        callbacks=callbacks,
        logger=TensorBoardLogger(str(folder), name="", version="", default_hp_metric=False),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    ).fit(classifier, datamodule=ShapesDataModule(train_images=60, test_images=20, batch_size=20, val_fraction=0.5))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs with every callback."""
    folder = tmp_path_factory.mktemp("run")
    fit(folder, [WarpGallery(str(folder), images=12), ThetaMonitor(), History(str(folder))])
    return folder


@pytest.fixture(scope="module")
def events(run: Path) -> EventAccumulator:
    found = EventAccumulator(str(run), size_guidance={"images": 0, "histograms": 0})
    found.Reload()
    return found


def test_a_picture_of_every_epoch_and_their_animation(run: Path) -> None:
    pictures = sorted(path.name for path in (run / "warps").iterdir())
    assert pictures == [f"transformer_epoch_00{epoch}.png" for epoch in (1, 2, 3)]
    with Image.open(run / "warps_transformer.gif") as film, Image.open(run / "warps" / pictures[0]) as first:
        assert film.n_frames == 3 and film.size == first.size
    with Image.open(run / "accuracy.png") as curve:
        assert np.asarray(curve.convert("L")).std() > 10


def test_tensorboard_has_the_pictures_histograms_and_scalars(events: EventAccumulator, run: Path) -> None:
    images = events.Images("warps/transformer")
    assert len(images) == 3
    assert [len(events.Histograms(f"transformer/theta_{index}")) for index in range(6)] == [3] * 6
    assert {"train/accuracy", "val/accuracy", "train/loss", "val/loss"} <= set(events.Tags()["scalars"])
    with Image.open(run / "warps" / "transformer_epoch_001.png") as picture:
        assert (images[0].width, images[0].height) == picture.size


@pytest.mark.parametrize(
    ("quantity", "mean", "within"),
    [
        ("rotation_degrees", TURN, 0.2),
        ("scale", SCALE, 1e-3),
        ("shift_x_pixels", SHIFT_X * 16, 1e-2),
        ("shift_y_pixels", SHIFT_Y * 16, 1e-2),
    ],
)
def test_theta_is_told_in_degrees_and_pixels(
    events: EventAccumulator, quantity: str, mean: float, within: float
) -> None:
    assert events.Scalars(f"transformer/{quantity}_mean")[-1].value == pytest.approx(mean, abs=within)
    assert events.Scalars(f"transformer/{quantity}_spread")[-1].value == pytest.approx(0, abs=within)


def test_the_pose_error_of_a_transformer_that_stands_still_is_the_spread_of_the_poses(
    events: EventAccumulator,
) -> None:
    """Every image is warped alike here: the same error as that of the identity, by another way than the callback's."""
    data = ShapesDataModule(train_images=60, test_images=20, batch_size=20, val_fraction=0.5)
    data.setup()
    truth, labels = corners_of(data.figures["val"]), data.labels["val"]
    means = torch.stack([truth[labels == label].mean(dim=0) for label in labels])
    expected = 16 * (truth - means).norm(dim=-1).mean().item()
    assert [one.value for one in events.Scalars("transformer/pose_error_pixels")] == pytest.approx([expected] * 3)
    assert events.Scalars("transformer/lost")[-1].value == 0


@pytest.mark.parametrize(
    ("theta", "lost"),
    [
        ([1.0, 0.0, 2.0, 0.0, 1.0, 0.0], True),
        ([0.001, 0.0, 0.0, 0.0, 0.5, 0.0], True),
        ([0.5, 0.0, 0.4, 0.0, 0.5, 0.0], False),
    ],
    ids=["beside the image", "a line", "within"],
)
def test_a_transformer_that_loses_the_image_is_reported(
    theta: list[float], lost: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(globals(), "known_theta", lambda: torch.tensor(theta))
    fit(tmp_path, [ThetaMonitor()], max_epochs=2)
    assert caplog.text.count("transformer has lost the image: in 100 % of the validation images") == lost


def test_a_part_of_the_validation_set_has_a_pose_error_too(tmp_path: Path) -> None:
    fit(tmp_path, [ThetaMonitor()], max_epochs=1, limit_val_batches=1, num_sanity_val_steps=1)
    found = EventAccumulator(str(tmp_path))
    found.Reload()
    assert found.Scalars("transformer/pose_error_pixels")[0].value > 0


def test_the_averaged_weights_are_validated_kept_and_tested(tmp_path: Path) -> None:
    """At a rate that moves the weights, the average lags behind; the test must have the average."""
    data = ShapesDataModule(train_images=60, test_images=20, batch_size=10, val_fraction=0.5)
    classifier = Classifier(MODEL, OPTIMIZER | {"lr": 0.1}, CLASSES)
    kept = pl.callbacks.ModelCheckpoint(dirpath=tmp_path, filename="best")
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        callbacks=[WeightAverage(decay=0.9), kept],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(classifier, datamodule=data)
    trainer.test(classifier, datamodule=data, ckpt_path="best", verbose=False)
    saved = torch.load(kept.best_model_path, weights_only=True)
    average, current = saved["state_dict"], saved["current_model_state"]
    name = "net.classifier.0.0.weight"
    assert not torch.allclose(average[name], current[name])
    torch.testing.assert_close(classifier.state_dict()[name], average[name])


WIDE = {"_target_": "stn.networks.WideConvNet", "_partial_": True, "widths": [4], "convolutions": [1]}


def sides_seen(epochs: int, *more: pl.Callback, precision: Any = "32-true", **changes: Any) -> dict[str, list[int]]:
    """The sides of the maps that the classifier sees in training, an epoch of one batch each, and outside it."""
    sides: dict[str, list[int]] = {"train": [], "val": []}
    classifier = Classifier(MODEL | changes, OPTIMIZER, CLASSES)
    classifier.net.get_submodule("classifier").register_forward_pre_hook(
        lambda module, inputs: sides["train" if module.training else "val"].append(inputs[0].shape[2])
    )
    data = ShapesDataModule(train_images=60, test_images=20, batch_size=30, val_fraction=0.5)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[ProgressiveResizing(start=0.6, until=0.5), *more],
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(classifier, datamodule=data)
    trainer.test(classifier, datamodule=data, verbose=False)
    return sides


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "64-true"])
def test_images_grow_in_training_and_are_whole_outside_it(precision: Any) -> None:
    before: list[object] = []

    class Later(pl.Callback):
        def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            before.append(pl_module.get_submodule("net.transformer").output_size)

    sides = sides_seen(6, Later(), precision=precision, classifier=WIDE)
    assert sides["train"] == [20, 24, 28, 32, 32, 32]
    # What the network makes of small images is tried once; a batch is 30 images, those of the test set 20.
    assert sides["val"] == [20, *[32] * 7]
    assert before == [None]  # what the summary shows


@pytest.mark.parametrize(
    ("changes", "side"),
    [
        ({}, 32),  # a classifier with a fully connected layer
        ({"placement": "none", "classifier": WIDE}, 32),
        ({"placement": "features", "classifier": WIDE | {"widths": [4, 4], "convolutions": [1, 1]}}, 15),
        ({"classifier": WIDE, "transformer": MODEL["transformer"] | {"output_size": [24, 24]}}, 24),
    ],
)
def test_images_keep_their_size_where_the_network_needs_it(changes: dict[str, Any], side: int) -> None:
    assert set(sides_seen(2, **changes)["train"]) == {side}


class Strict(torch.nn.Module):
    """A stage that takes images of one size alone, as a vision transformer does."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.shape[2] == 32, images.shape
        return images.mean((2, 3))


def test_images_keep_their_size_where_a_stage_asserts_it() -> None:
    def strict(in_channels: int, num_classes: int, image_size: int) -> torch.nn.Module:
        return torch.nn.Sequential(Strict(), torch.nn.Linear(in_channels, num_classes))

    resizing = ProgressiveResizing()
    net = torch.nn.Sequential(SpatialTransformer(ConvLocalization()), strict(3, 10, 32))
    module = torch.nn.ModuleDict({"net": net, "normalization": torch.nn.Identity()})
    trainer = SimpleNamespace(
        datamodule=SimpleNamespace(images={"val": torch.rand(2, 3, 32, 32)}),
        precision_plugin=SimpleNamespace(forward_context=nullcontext),
    )
    resizing.on_fit_start(trainer, module)  # type: ignore[arg-type]
    assert resizing.readers == [] and net[0].output_size is None


@pytest.mark.parametrize(("side", "sides"), [(28, [16, 20, 24]), (64, [40, 48, 56]), (128, [80, 96, 112])])
def test_images_have_few_sizes_and_do_not_shrink(side: int, sides: list[int]) -> None:
    """Each size is compiled. A run that goes on for more epochs has seen larger images already."""
    resizing = ProgressiveResizing()
    net = torch.nn.Sequential(SpatialTransformer(ConvLocalization(image_size=side)), torch.nn.Flatten(2))
    module = torch.nn.ModuleDict({"net": net, "normalization": torch.nn.Identity()})
    trainer = SimpleNamespace(
        datamodule=SimpleNamespace(images={"val": torch.rand(2, 3, side, side)}),
        precision_plugin=SimpleNamespace(forward_context=nullcontext),
        max_epochs=100,
        current_epoch=0,
    )

    def size_in(epoch: int) -> Any:
        trainer.current_epoch = epoch
        resizing.on_train_batch_start(trainer, module)  # type: ignore[arg-type]
        return net[0].output_size

    resizing.on_fit_start(trainer, module)  # type: ignore[arg-type]
    assert list(dict.fromkeys(size_in(epoch) for epoch in range(100))) == [*((one, one) for one in sides), None]
    kept = resizing.state_dict()
    resizing = ProgressiveResizing()
    resizing.load_state_dict(kept)
    resizing.on_fit_start(trainer, module)  # type: ignore[arg-type]
    trainer.max_epochs = 1000
    assert size_in(100) is None


def test_the_average_is_put_aside_after_all_have_drawn(composed: Callable[..., DictConfig]) -> None:
    names = [type(callback).__name__ for callback in build_trainer(composed(*TINY)).callbacks]  # type: ignore[attr-defined]
    assert names.index("WeightAverage") > max(map(names.index, ("WarpGallery", "ThetaMonitor", "Dashboard")))


def test_a_single_epoch_sees_whole_images() -> None:
    assert sides_seen(1, classifier=WIDE)["train"] == [32]


class Look(pl.Callback):
    """Makes θ depend on the image."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        with torch.no_grad():
            pl_module.get_submodule("net.transformer").get_submodule("head").weight.normal_(0, 0.1)


@pytest.mark.parametrize("tta", ["mirror", "six"])
def test_other_views_do_not_count(tta: str, tmp_path: Path) -> None:
    found = []
    for views in ("none", tta):
        torch.manual_seed(0)
        fit(tmp_path / views, [Look(), ThetaMonitor()], max_epochs=1, tta=views)
        found.append(EventAccumulator(str(tmp_path / views)))
        found[-1].Reload()
    for quantity in ("pose_error_pixels", "rotation_degrees_mean", "shift_x_pixels_mean"):
        alone, among = (events.Scalars(f"transformer/{quantity}")[0].value for events in found)
        assert among == pytest.approx(alone, abs=1e-6)


def test_the_pictures_do_not_count_as_validation_images(tmp_path: Path) -> None:
    """What is drawn goes through the network too: 20 images here, none of which is to be in the mean."""
    counts: list[int] = []

    class Count(ThetaMonitor):
        def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            counts.extend(sum(len(one.theta) for one in passes) for passes in self.records.values())
            super().on_validation_epoch_end(trainer, pl_module)

    fit(tmp_path, [WarpGallery(str(tmp_path), images=20), Count()], max_epochs=1)
    assert counts == [30]


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_pictures_are_drawn_in_the_precision_that_is_trained_in(precision: str, tmp_path: Path) -> None:
    fit(tmp_path, [WarpGallery(str(tmp_path)), ThetaMonitor()], max_epochs=1, precision=precision)
    assert (tmp_path / "warps" / "transformer_epoch_001.png").is_file()


def test_an_epoch_without_validation_has_no_row(tmp_path: Path) -> None:
    history = History(str(tmp_path))
    fit(tmp_path, [history], max_epochs=5, check_val_every_n_epoch=2)
    assert [row["epoch"] for row in history.rows] == [2, 4]
    assert (history.epochs, history.steps) == (5, 5) and history.seconds > 0


def test_the_picture_shows_original_outline_and_what_was_sampled() -> None:
    """A transformer that reads the right half shows only the right half's colour, and its outline lies there."""
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    image[:, 1, :, 16:] = 255
    theta = torch.tensor([[0.4, 0.0, 0.5, 0.0, 0.4, 0.0]])
    transformer = SpatialTransformer(ConvLocalization())
    picture = np.asarray(sheet(readings(transformer, Normalization(), theta, image, ["half"]), "title"))
    top, left = TOP + TOP + GAP, MARGIN + GAP
    original = picture[top : top + SIDE, left : left + SIDE]
    sampled = picture[top + SIDE + GAP :][:SIDE, left : left + SIDE]
    red = original[:, :, 0] > 0  # of the outline alone
    rows, columns = np.nonzero(red)
    assert columns.min() == pytest.approx(SIDE * (1.1 / 2), abs=2) and columns.max() == pytest.approx(
        SIDE * 0.95, abs=2
    )
    assert rows.min() == pytest.approx(SIDE * 0.3, abs=2) and rows.max() == pytest.approx(SIDE * 0.7, abs=2)
    assert (sampled == (0, 255, 0)).all()
    assert (original[:, : SIDE // 2 - 2] == 0).all()


@pytest.mark.parametrize(("padding", "grey"), [("zeros", 128), ([1.0] * 3, 191), ("border", 255)])
def test_the_picture_shows_beyond_the_border_what_the_network_sees(padding: Any, grey: int) -> None:
    transformer, normalization = SpatialTransformer(ConvLocalization(), padding=padding), Normalization()
    normalization.fit([0.5] * 3, [0.25] * 3)
    white, beyond = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8), torch.tensor([[1.0, 0, 4, 0, 1, 0]])
    seen = readings(transformer, normalization, beyond, white, [""])[0].seen
    assert seen is not None and np.asarray(seen)[16, 16].tolist() == pytest.approx([grey] * 3, abs=1)


def test_images_are_spread_over_the_classes() -> None:
    labels = torch.tensor([0] * 50 + [1] * 3 + [2] * 30)
    assert labels[spread_over_classes(labels, 7)].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert labels[spread_over_classes(labels, 11)].tolist() == [0, 1, 2] * 3 + [0, 2]
    assert len(spread_over_classes(labels, 500)) == 83


def test_no_picture_of_no_images() -> None:
    with pytest.raises(ValueError, match="images must be 1 or more, not 0"):
        WarpGallery("figures", images=0)
