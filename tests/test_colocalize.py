"""What all images share is found, without labels or boxes: the parts, and the command as a user types it."""

import json
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from conftest import TINY, Command
from omegaconf import OmegaConf
from test_bad_input import refused
from torch import Tensor

from stn.classifier import Classifier
from stn.cli import Terminated
from stn.colocalization import colocalize, hide
from stn.colocalizer import Colocalizer, Finder, WindowScores, embed, triplet_loss
from stn.config import compose
from stn.data import AffineDistortion

SIZE, WINDOW = 40, 16
HIDDEN = AffineDistortion(rotation=0, scale=(1, 1), shift=None, canvas=SIZE)


def encoder(*settings: str) -> Classifier:
    """A network with random weights, whose features tell images apart too."""
    words = ["model=convnet_small", "model.placement=none", *settings]
    plain: Any = OmegaConf.to_container(compose(words, "run"), resolve=True)
    network = Classifier(plain["model"], plain["optimizer"], ["0", "1"], 1, WINDOW).eval()
    network.normalization.fit([0.2], [0.4])
    return network


def crosses(count: int = 40) -> tuple[Tensor, Tensor]:
    """Images that share a cross among clutter, and the boxes of the cross."""
    images = torch.randint(0, 2, (200, 1, WINDOW, WINDOW), dtype=torch.uint8) * 255
    images[:count] = 0
    images[:count, :, 6:10] = images[:count, :, :, 6:10] = 255
    clutter = AffineDistortion(rotation=0, scale=(1, 1), shift=None, canvas=SIZE, pieces=4, piece_size=4, opaque=False)
    return hide(images, torch.arange(200) < count, clutter, seed=0)


def trained(images: Tensor, boxes: Tensor) -> Colocalizer:
    torch.manual_seed(0)
    module = Colocalizer(encoder(), images, boxes, starts=2)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    pl.Trainer(accelerator="cpu", max_epochs=6, logger=False, **quiet).fit(module)
    return module


def test_windows_are_equally_likely_at_first_and_each_sees_what_is_in_it() -> None:
    scores = WindowScores(1, SIZE, WINDOW)
    assert torch.allclose(scores(torch.rand(2, 1, SIZE, SIZE)), torch.tensor(1 / scores.out_features))
    torch.nn.init.ones_(scores[1].weight)
    torch.nn.init.ones_(scores[3].weight)
    centres = ((scores.windows[:, 1:] + 1) / 2 * SIZE).round().long()
    assert centres[0].tolist() == [8, 8] and centres[-1].tolist() == [32, 32]
    for index, (x, y) in enumerate(centres.tolist()):
        image = torch.zeros(1, 1, SIZE, SIZE)
        image[..., y - 8 : y + 8, x - 8 : x + 8] = 1
        assert scores(image).argmax() == index


def test_the_crop_of_a_window_that_is_certain_is_that_window() -> None:
    transformer = Finder(1, SIZE, WINDOW)
    certain = torch.eye(transformer.localization.out_features)
    theta = transformer.head(certain)
    assert torch.allclose(theta, transformer.localization.windows)
    image = torch.rand(1, 1, SIZE, SIZE)
    assert torch.allclose(transformer.transform(image, theta[-1:]), image[..., 24:, 24:], atol=1e-5)


def test_an_image_or_a_window_that_is_too_small_is_refused() -> None:
    for window in (16, 6):
        with pytest.raises(ValueError, match=f"windows must have 7 to 12 pixels, the side of the images, not {window}"):
            WindowScores(1, 12, window)


def test_the_loss_is_that_of_the_paper() -> None:
    features = torch.nn.functional.normalize(torch.randn(3, 4, 5), dim=2)
    likelihood = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    crop, state = [features[0, 0], features[1, 2], features[2, 3]], torch.get_rng_state()
    found = triplet_loss(features, likelihood)
    torch.set_rng_state(state)
    torch.multinomial(likelihood, 1)
    other = torch.randint(4, (3,))
    expected = [
        max(0.0, float((crop[n] - crop[m]).square().sum() - (crop[n] - features[n, other[n]]).square().sum() + 1))
        for n in range(3)
        for m in range(3)
        if n != m
    ]
    assert found.item() == pytest.approx(sum(expected) / 6, abs=1e-5)


def test_features_are_those_of_the_windows_and_have_length_one() -> None:
    images, boxes = crosses(10)
    network = encoder()
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    module = Colocalizer(network, images, boxes)
    assert torch.allclose(module.features.norm(dim=2), torch.ones(10, len(module.features[0])))
    whole = module.best.transform(module.images, module.best.localization.windows[3].expand(10, -1))
    assert torch.allclose(module.features[:, 3], embed(network, whole), atol=1e-6)
    assert all(torch.equal(weight, before[name]) for name, weight in network.state_dict().items())


def test_the_features_behind_a_transformer_are_the_classifier_s() -> None:
    torch.manual_seed(0)
    network = encoder("model.placement=input", "model.localization.kernels=[3,3]")  # which starts as the identity
    crops = torch.rand(5, 1, WINDOW, WINDOW)
    alone = encoder()
    alone.net.get_submodule("classifier").load_state_dict(network.net.get_submodule("classifier").state_dict())
    assert torch.allclose(embed(network, crops), embed(alone, crops), atol=1e-5)


def test_only_images_of_the_class_are_hidden_and_the_boxes_tell_where() -> None:
    images = torch.full((30, 1, WINDOW, WINDOW), 100, dtype=torch.uint8)
    images[::3] = 200
    hidden, boxes = hide(images, images[:, 0, 0, 0] == 200, HIDDEN, seed=3)
    assert len(hidden) == len(boxes) == 10
    centres = (torch.arange(SIZE) + 0.5) / SIZE * 2 - 1
    for image, (left, top, right, bottom) in zip(hidden, boxes, strict=True):
        across, down = (centres - left) * (right - centres), (centres - top) * (bottom - centres)
        margin = 1.5 / SIZE  # where the border is blended
        within = (across > margin) & (down > margin)[:, None]
        assert (image[0, within] == 200).all()
        assert image[0, (across < -margin) | (down < -margin)[:, None]].sum() == 0
    with pytest.raises(ValueError, match="two images of the class or more, not 0"):
        hide(images, images[:, 0, 0, 0] == 50, HIDDEN, seed=0)


def test_what_all_images_share_is_found_and_the_boxes_are_not_used() -> None:
    images, boxes = crosses()
    module = trained(images, boxes)
    assert (module.overlaps() >= 0.5).float().mean() >= 0.9
    assert torch.equal(module.theta(), trained(images, boxes.roll(1, 0)).theta())


CHOSEN = [
    *(word for word in TINY if not word.startswith(("trainer", "data.test_images", "data=shapes"))),
    "data=shapes",
    "data.test_images=40",
    "data.image_size=32",
]


def test_the_command_trains_an_encoder_and_writes_score_and_pictures(command: Command, tmp_path: Path) -> None:
    of_the_encoder = ("trainer.max_epochs=2", "trainer.check_val_every_n_epoch=2")
    found = command("category=star", *CHOSEN, *of_the_encoder, "output=found", verb="colocalize")
    assert found.returncode == 0, found.stderr
    result = json.loads((tmp_path / "found" / "colocalization.json").read_text())
    assert result["images"] >= 2 and 0 <= result["found"] <= 1 and result["category"] == "star"
    assert f"found {result['found']:.0%}" in found.stdout
    assert len(list((tmp_path / "found" / "figures").glob("epoch_*.png"))) == 6
    assert "val/found" in (tmp_path / "found" / "metrics.csv").read_text()
    # The encoder saw undistorted images, and serves again.
    again = command("category=star", *CHOSEN, "encoder=found/encoder", "output=again", verb="colocalize")
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "again" / "colocalization.json").read_text())["found"] == result["found"]
    refused(
        command("category=star", *CHOSEN, "output=again", verb="colocalize"),
        "again holds files already",
        program="stn.colocalize",
    )
    # What is refused deletes nothing.
    for words, said in (
        (["category=zebra"], "category=zebra: there is no such class"),
        (["category=star", "encoder=found/encoder"], "encoder=found/encoder lies in found, where the results are"),
    ):
        words = [*words, *CHOSEN, "output=found", "overwrite=true"]
        refused(command(*words, verb="colocalize"), said, program="stn.colocalize")
        assert (tmp_path / "found" / "encoder" / "config.yaml").exists()
    assert json.loads((tmp_path / "found" / "colocalization.json").read_text()) == result


@pytest.mark.parametrize("error", [KeyboardInterrupt, Terminated(15)])
def test_an_interruption_is_told_as_one(error: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: Colocalizer) -> None:
        raise error

    monkeypatch.setattr(Colocalizer, "on_train_epoch_start", interrupt, raising=False)
    with pytest.raises(KeyboardInterrupt) as found:
        colocalize(compose(CHOSEN, str(tmp_path / "found"), "colocalize"), "star")
    assert isinstance(found.value, type(error) if isinstance(error, Terminated) else KeyboardInterrupt)
    assert not (tmp_path / "found" / "colocalization.json").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "category=… is missing"),
        (["category=start"], "category=start: there is no such class; did you mean"),
        (["category=star", "data.distortion.canvas=32"], "data.distortion: it must put the images on a larger canvas"),
        (["category=star", "data.distortion.canvas=20"], "canvas must be 32 or more, the side of the images, not 20"),
        (["category=star", "data/distortion=none"], "data.distortion: it must put the images on a larger canvas"),
        (["category=star", "encoder=nowhere"], "nowhere does not exist"),
        (["category=star", "trainer.devices=2"], "all images are in one batch, so trainer.devices must be 1, not 2"),
        (["category=star", "trainer.epochs=3"], "trainer has no key 'epochs'"),
    ],
)
def test_a_wrong_word_is_one_sentence(words: list[str], said: str, command: Command) -> None:
    given = {word.partition("=")[0] for word in words}
    chosen = [word for word in CHOSEN if word.partition("=")[0] not in given]
    refused(command(*chosen, *words, verb="colocalize"), said, program="stn.colocalize")
