import csv
import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn

import stn
from stn.classifier import Classifier, turn
from stn.data import ShapesDataModule
from stn.data.resident import ResidentDataModule
from stn.data.shapes import FIGURES
from stn.layers import distance_to_truth, figure_points, thetas
from stn.networks import Whitening

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
    "classifier": {"_target_": "stn.networks.WideConvNet", "_partial_": True, "widths": [8, 8], "convolutions": [1, 2]},
}
CLASSES = list(FIGURES)
OPTIMIZER = {"_target_": "stn.optimization.Optimization", "algorithm": "sgd", "lr": 0.05, "schedule": "one_cycle"}


def classifier(**options: Any) -> Classifier:
    torch.manual_seed(0)
    return Classifier(MODEL, OPTIMIZER, CLASSES, **options)


def shapes() -> ResidentDataModule:
    return ShapesDataModule(train_images=80, test_images=30, batch_size=20, eval_batch_size=7, val_fraction=0.25)


def trainer(folder: Path, **options: object) -> pl.Trainer:
    settings = {"accelerator": "cpu", "max_epochs": 1, "logger": False, "enable_progress_bar": False}
    return pl.Trainer(default_root_dir=folder, enable_model_summary=False, **settings | options)  # type: ignore[arg-type]


def test_metrics_are_those_of_the_whole_set(tmp_path: Path) -> None:
    """Whatever the batches, accuracy and loss are those of all scores at once."""
    module, data = classifier(), shapes()
    runs = trainer(tmp_path)
    runs.fit(module, datamodule=data)
    found = runs.test(module, datamodule=data, verbose=False)[0]
    module.eval()
    with torch.no_grad():
        scores = torch.cat([module(images) for images, _ in data.test_dataloader()])
    labels = data.labels["test"]
    assert found["test/accuracy"] == pytest.approx((scores.argmax(1) == labels).float().mean().item())
    assert found["test/loss"] == pytest.approx(F.cross_entropy(scores, labels).item(), rel=1e-4)


@pytest.mark.parametrize("interval", [1, 2, 50])
@pytest.mark.parametrize("steps", [6, 5], ids=["whole epochs", "ended within the second"])
def test_training_metrics_are_those_of_every_step_of_their_epoch(steps: int, interval: int, tmp_path: Path) -> None:
    module, data = classifier(), shapes()
    scores: list[Tensor] = []
    module.net.register_forward_hook(lambda net, images, out: scores.append(out.detach()) if net.training else None)
    found: list[tuple[float, float]] = []
    epochs: list[tuple[dict[str, Tensor], list[tuple[float, float]]]] = []

    class Steps(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *step: Any) -> None:
            outputs, (_, labels, *_), _ = step
            found.append(((scores[-1].argmax(1) == labels).float().mean().item(), outputs["loss"].item()))

        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            epochs.append((dict(trainer.callback_metrics), list(found)))
            found.clear()

    trainer(tmp_path, callbacks=[Steps()], max_epochs=2, max_steps=steps, log_every_n_steps=interval).fit(
        module, datamodule=data
    )
    assert [len(found) for _, found in epochs] == [3, steps - 3]
    for metrics, of_steps in epochs:
        accuracies, losses = zip(*of_steps, strict=True)
        assert metrics["train/accuracy"].item() == pytest.approx(sum(accuracies) / len(accuracies), rel=1e-5)
        assert metrics["train/loss"].item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_a_checkpoint_loads_with_weights_only_and_scores_alike(tmp_path: Path) -> None:
    module, data = classifier(), shapes()
    runs = trainer(tmp_path)
    runs.fit(module, datamodule=data)
    path = tmp_path / "run.ckpt"
    runs.save_checkpoint(path)
    torch.load(path, weights_only=True)
    with pytest.raises(TypeError, match=r"open a checkpoint by stn.Run.open\(path\)"):
        Classifier.load_from_checkpoint(path)
    loaded = stn.Run.open(path).classifier
    images = torch.rand(3, 3, 32, 32)
    assert torch.equal(loaded.eval()(images), module.eval()(images))
    assert dict(loaded.hparams) == dict(module.hparams)


def test_label_smoothing_is_for_training_alone() -> None:
    images, labels = torch.rand(6, 3, 32, 32), torch.arange(6)
    found = []
    for smoothing in (0.0, 0.2):
        module = classifier(label_smoothing=smoothing)
        module.log_dict = lambda *args, **options: None  # type: ignore[assignment,method-assign]
        scores = module(images)
        expected = F.cross_entropy(scores, labels, label_smoothing=smoothing)
        torch.testing.assert_close(module.training_step((images, labels)), expected)
        module.validation_step((images, labels))
        found.append(module.val_metrics.compute()["val/loss"])
    torch.testing.assert_close(found[0], found[1])


def test_views_are_scored_outside_training_alone() -> None:
    plain, mirror, six = (classifier(tta=tta) for tta in ("none", "mirror", "six"))
    torch.nn.init.normal_(plain.net.get_submodule("transformer").get_submodule("head").weight, std=0.3)
    images = torch.rand(5, 3, 32, 32)
    for module in (mirror, six):
        module.load_state_dict(plain.state_dict())
    scores = [module(images) for module in (plain, mirror, six)]  # in training
    assert torch.equal(scores[0], scores[1]) and torch.equal(scores[0], scores[2])
    for module in (plain, mirror, six):
        module.eval()

    def probabilities(images: torch.Tensor) -> torch.Tensor:
        return (plain(images).softmax(1) + plain(images.flip(3)).softmax(1)) / 2

    torch.testing.assert_close(mirror(images).exp(), probabilities(images))
    assert not torch.allclose(mirror(images).exp(), plain(images).softmax(1))
    torch.testing.assert_close(mirror(images), mirror(images.flip(3)))
    # As airbench94's infer_mirror_translate.
    padded = F.pad(images, (1,) * 4, "reflect")
    shifted = [probabilities(padded[:, :, row : row + 32, row : row + 32]) for row in (0, 2)]
    torch.testing.assert_close(six(images).exp(), (probabilities(images) + sum(shifted) / 2) / 2)


POSED = MODEL | {
    "localization": {"_target_": "stn.layers.PoseLocalization", "_partial_": True, "widths": [4, 8]},
    "warp": {"_target_": "stn.layers.RotationClasses"},
    "transformer": MODEL["transformer"] | {"classifier_gradient": 0.0},  # type: ignore[operator]
}


def posed(**options: Any) -> Classifier:
    torch.manual_seed(0)
    return Classifier(POSED, OPTIMIZER, CLASSES, **options)


@pytest.mark.parametrize("tta", ["poses", "unmirrored_poses"])
def test_two_poses_are_weighted_by_how_likely_they_are(tta: Any) -> None:
    module = posed(tta=tta).eval()
    transformer, rest = module.net[0], module.net[1]
    with torch.no_grad():
        transformer.head.weight.normal_(0, 0.3)
        images = torch.rand(5, 3, 32, 32)
        expected = torch.zeros(5, 10)
        views = [module.normalization(images), module.normalization(images).flip(3)][: 1 + (tta == "poses")]
        for view in views:
            theta = transformer.theta(view)
            other, share = transformer.warp.second_best(theta)
            for pose, weight in ((theta, share), (other, 1 - share)):
                expected += weight[:, None] / len(views) * rest(transformer.transform(view, pose)).softmax(1)
        torch.testing.assert_close(module(images).exp(), expected)
        assert (module(images).exp() - module.train()(images).softmax(1)).abs().max() > 1e-4


def test_two_poses_need_a_choice_among_angles() -> None:
    with pytest.raises(ValueError, match="tta=poses needs a transformer on the image with model/warp=rotation_classes"):
        classifier(tta="poses")


def test_a_class_that_no_pose_shows_has_a_finite_loss() -> None:
    module = posed(tta="poses").eval()
    module._of_poses = lambda images: torch.eye(10)[:3]  # type: ignore[method-assign]
    assert module(torch.rand(3, 3, 32, 32)).isfinite().all()


def test_the_pose_loss_is_not_computed_in_bfloat16() -> None:
    model = MODEL | {"warp": {"_target_": "stn.layers.Attention"}}
    module = Classifier(model, OPTIMIZER, CLASSES, pose_weight=1.0)
    module.log = lambda *args, **options: None  # type: ignore[assignment,method-assign]
    theta = torch.tensor([[0.501, 0.2003, -0.3007]])
    module.looks = [(theta, theta)]
    figure = figure_points().float()[None] * 0.7
    expected = module._pose_loss(figure)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module._pose_loss(figure), expected)


def test_a_look_whose_truth_is_unknown_does_not_count() -> None:
    """Where a spline folds, it has no inverse, and so no truth for the look after it."""
    model = MODEL | {"warp": {"_target_": "stn.layers.ThinPlateSpline", "size": 4}}
    module = Classifier(model, OPTIMIZER, CLASSES, pose_weight=1.0)
    module.log = lambda *args, **options: None  # type: ignore[assignment,method-assign]
    torch.manual_seed(0)
    folded, second = torch.randn(64, 32), torch.randn(64, 32, requires_grad=True)
    figure = 0.7 * figure_points().float().expand(64, -1, -1)
    after = module.net.transformer.warp.invert(folded, figure)  # type: ignore[union-attr,operator]
    known = after.isfinite().flatten(1).all(dim=1)
    assert 0 < known.sum() < 64
    module.looks = [(folded, folded), (folded, second)]
    module._pose_loss(figure).backward()
    assert second.grad is not None and torch.equal(second.grad.any(dim=1), known) and second.grad.isfinite().all()


def test_images_are_turned_about_points_in_float32() -> None:
    images = torch.rand(1, 3, 96, 96)
    expected = turn(images, 0.3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(turn(images, 0.3), expected)


def test_of_all_turns_the_surest_counts() -> None:
    module = classifier(tta="turns").eval()
    images = torch.rand(6, 3, 32, 32)
    with torch.no_grad():
        normal = module.normalization(images)
        turned = torch.stack([module.net(turn(normal, 2 * math.pi * k / 12)) for k in range(12)])
        found = module(images)
    torch.testing.assert_close(turn(normal, 0.0), normal, atol=1e-5, rtol=0)
    torch.testing.assert_close(turn(normal, math.pi / 2), normal.rot90(1, (2, 3)), atol=1e-4, rtol=0)
    for index in range(6):
        best = turned[:, index].softmax(1).amax(1).argmax()
        torch.testing.assert_close(found[index], turned[best, index])


def test_the_pose_is_learned_from_the_truth_and_the_labels(tmp_path: Path) -> None:
    data = ShapesDataModule(train_images=400, test_images=20, batch_size=20, val_fraction=0.1)
    errors = {}
    for weight in (0.0, 1.0):
        module = posed(pose_weight=weight, pose_label_weight=weight)
        trainer(tmp_path, max_epochs=4).fit(module, datamodule=data)
        figures, images = data.figures["val"], data.images["val"]
        theta = thetas(module.net, module.normalization(images))["transformer"]
        errors[weight] = distance_to_truth(module.net[0].to_input, theta, figures, 32, 32)[0].mean().item()
        first, before = (one.net[0].localization[0].weight for one in (module, posed()))
        assert torch.equal(first, before) == (weight == 0)  # it has no gradient of the classifier
    assert errors[1.0] < 0.8 * errors[0.0]
    assert module.label_head is not None
    trained = {id(parameter) for group in module.optimizers().param_groups for parameter in group["params"]}
    assert {id(parameter) for parameter in module.label_head.parameters()} <= trained


def test_every_epoch_comes_in_its_own_order(tmp_path: Path) -> None:
    seen: list[list[int]] = []

    class Order(pl.Callback):
        def on_train_batch_start(
            self, trainer: object, pl_module: object, batch: list[torch.Tensor], index: int
        ) -> None:
            if index == 0:
                seen.append(batch[1].tolist())

    trainer(tmp_path, max_epochs=3, callbacks=[Order()]).fit(classifier(), datamodule=shapes())
    assert len(seen) == 3 and seen[0] != seen[1] != seen[2] != seen[0]


def test_training_learns_and_moves_the_transformer(tmp_path: Path) -> None:
    module = classifier()
    before = {name: parameter.clone() for name, parameter in module.named_parameters()}
    runs = trainer(tmp_path, max_epochs=5, overfit_batches=1)
    runs.fit(module, datamodule=shapes())
    same = {name for name, parameter in module.named_parameters() if torch.equal(before[name], parameter)}
    fixed = {f"{name}.weight" for name, part in module.named_modules() if isinstance(part, nn.BatchNorm2d)}
    assert same == fixed
    head = module.net.get_submodule("transformer").get_submodule("head")
    assert isinstance(head, nn.Linear) and head.weight.abs().max() > 0


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_can_be_clipped(precision: Any, tmp_path: Path) -> None:
    moved = []
    for clip in (1e-3, None):
        module = classifier()
        before = module.net.get_submodule("transformer.head").weight.clone()
        trainer(tmp_path, precision=precision, gradient_clip_val=clip).fit(module, datamodule=shapes())
        moved.append((module.net.get_submodule("transformer.head").weight - before).norm().item())
    assert 0 < moved[0] < moved[1] / 10


def test_rates_and_losses_are_logged_by_step(tmp_path: Path) -> None:
    module = Classifier(MODEL, OPTIMIZER | {"norm_lr_scale": 64.0, "schedule": "constant"}, CLASSES)
    monitor = pl.callbacks.LearningRateMonitor(logging_interval="step")
    logger = CSVLogger(tmp_path)
    trainer(tmp_path, callbacks=[monitor], logger=logger, log_every_n_steps=1).fit(module, datamodule=shapes())
    rates = {name: {round(rate, 6) for rate in found} for name, found in monitor.lrs.items()}
    assert rates == {
        "learning_rate/weights": {0.05},
        "learning_rate/localization": {0.05},
        "learning_rate/norms": {3.2},
    }
    with Path(logger.log_dir, "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["train/loss_step"]) for row in rows if row["train/loss_step"]]
    (mean,) = (float(row["train/loss"]) for row in rows if row["train/loss"])
    assert len(losses) == 3 and mean == pytest.approx(sum(losses) / 3, rel=1e-4)


def test_the_first_layer_is_whitened_once(tmp_path: Path) -> None:
    module, data = classifier(), shapes()
    (layer,) = (part for part in module.net.modules() if isinstance(part, Whitening))
    trainer(tmp_path).fit(module, datamodule=data)
    batches = data.train_dataloader()
    alone = Whitening()
    alone.fit(module.normalization(batches.images))
    torch.testing.assert_close(layer.weight, alone.weight)
    other = ShapesDataModule(train_images=40, test_images=10, batch_size=20, seed=5)
    trainer(tmp_path).fit(module, datamodule=other)
    torch.testing.assert_close(layer.weight, alone.weight)


def test_a_mixed_image_counts_as_the_class_it_shows_most_of() -> None:
    module, images = classifier(label_smoothing=0.1), torch.rand(4, 3, 32, 32)
    shares = torch.tensor([[0.7, 0.3, *[0.0] * 8]] * 4)
    scores, target, losses = module._score((images, shares))
    assert target.tolist() == [0] * 4
    torch.testing.assert_close(scores, module(images))
    torch.testing.assert_close(losses.mean(), F.cross_entropy(scores, shares))
