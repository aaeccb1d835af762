import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from stn.data.resident import ResidentDataModule, channel_statistics, even_subset


class Counted(ResidentDataModule):
    """Each image is filled with its number."""

    classes = ("even", "odd")
    train, test, side, depth = 40, 10, 32, 3
    reads: list[bool]

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        self.reads.append(train)
        number = torch.arange(self.train) if train else 100 + torch.arange(self.test)
        images = number.to(torch.uint8)[:, None, None, None].expand(-1, self.depth, self.side, self.side)
        return images.contiguous(), number % 2


def data(**options: Any) -> Counted:
    module = Counted(**{"batch_size": 8, "val_fraction": 0.25} | options)
    module.reads = []
    return module


def numbers(images: Tensor) -> list[int]:
    return sorted(images[:, 0, 0, 0].tolist())


def test_the_held_out_part_is_apart_and_drawn_by_its_seed() -> None:
    module, same, other = data(), data(seed=5), data(split_seed=1)
    for each in (module, same, other):
        each.setup()
    assert len(module.images["val"]) == 10 and len(module.images["train"]) == 30
    assert sorted(numbers(module.images["train"]) + numbers(module.images["val"])) == list(range(40))
    assert numbers(module.images["test"]) == list(range(100, 110))
    assert numbers(module.images["val"]) == numbers(same.images["val"]) != numbers(other.images["val"])


def test_labels_stay_with_their_images_through_the_split() -> None:
    module = data()
    module.setup()
    for split, images in module.images.items():
        assert torch.equal(images[:, 0, 0, 0].long() % 2, module.labels[split])


def test_a_subset_is_of_the_training_images_alone() -> None:
    whole, module, other = data(), data(subset=8), data(subset=8, split_seed=1)
    for each in (whole, module, other):
        each.setup()
    assert set(numbers(module.images["train"])) < set(numbers(whole.images["train"]))
    assert module.labels["train"].bincount().tolist() == [4, 4]
    assert torch.equal(module.images["train"][:, 0, 0, 0].long() % 2, module.labels["train"])
    assert numbers(module.images["val"]) == numbers(whole.images["val"])
    assert numbers(module.images["train"]) != numbers(other.images["train"])


def test_a_subset_has_as_many_of_each_class_while_they_last() -> None:
    labels = torch.tensor([0] * 3 + [1] * 20 + [2] * 20)[torch.randperm(43)]
    assert labels[even_subset(labels, 6, 0)].bincount().tolist() == [2, 2, 2]
    assert labels[even_subset(labels, 15, 0)].bincount().tolist() == [3, 6, 6]
    assert sorted(even_subset(labels, 43, 0).tolist()) == list(range(43))


def test_validate_on_test_trains_on_all_and_scores_the_test_set() -> None:
    module = data(validate_on="test")
    module.setup()
    assert numbers(module.images["train"]) == list(range(40))
    assert numbers(module.images["val"]) == numbers(module.images["test"]) == list(range(100, 110))


def test_training_is_augmented_and_scoring_is_not() -> None:
    module = data(flip=True, shift=2, cutout=4, batch_size=30, eval_batch_size=7, mean=(0, 0, 0))
    module.setup()
    images, _ = next(iter(module.train_dataloader()))
    assert len(images) == 30 and (images == 0).flatten(1).any(dim=1).all()
    assert [len(labels) for _, labels in module.val_dataloader()] == [7, 3]
    assert not any((images == 0).any() for images, _ in module.test_dataloader())


def test_images_of_another_size_are_resized() -> None:
    module = data(image_size=20)
    module.setup()
    assert module.images["train"].shape[1:] == (3, 20, 20)
    assert numbers(module.images["test"]) == list(range(100, 110))


@pytest.mark.parametrize(
    ("stage", "validate_on", "reads", "splits"),
    [
        ("fit", "held_out", [True], {"train", "val"}),
        ("validate", "held_out", [True], {"train", "val"}),
        ("test", "held_out", [False], {"test"}),
        (None, "held_out", [True, False], {"train", "val", "test"}),
        ("fit", "test", [True, False], {"train", "val", "test"}),
        ("test", "test", [False], {"val", "test"}),
    ],
)
def test_a_stage_reads_what_it_needs_once(stage: str, validate_on: str, reads: list[bool], splits: set[str]) -> None:
    module = data(validate_on=validate_on)
    for _ in range(2):
        module.setup(stage)
    assert module.reads == reads and set(module.images) == set(module.labels) == splits


def test_mean_and_deviation_are_measured_unless_given() -> None:
    module = data(validate_on="test", std=(0.1, 0.2, 0.3))
    module.setup("fit")
    pixels = torch.arange(40) / 255
    assert module.mean == pytest.approx([pixels.mean().item()] * 3)
    assert module.std == [0.1, 0.2, 0.3]
    images = torch.randint(0, 256, (250, 2, 8, 8), dtype=torch.uint8)
    images[:, 1] = 255
    mean, std = channel_statistics(images)
    assert mean == pytest.approx([(images[:, 0] / 255).mean().item(), 1.0])
    assert std == pytest.approx([(images[:, 0] / 255).std(unbiased=False).item(), 1 / 255])


@pytest.mark.parametrize("depth", [1, 2, 4, 5])
def test_images_of_any_number_of_channels(depth: int) -> None:
    module = data(channels=depth, image_size=20)
    module.depth = depth
    module.setup()
    images, _ = next(iter(module.train_dataloader()))
    assert images.shape == (8, depth, 20, 20)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 0}, "batch_size must be 1 or more, not 0"),
        ({"eval_batch_size": 0}, "eval_batch_size must be 1 or more, not 0"),
        ({"image_size": 0}, "image_size must be 1 or more, not 0"),
        ({"val_fraction": 0.0}, "val_fraction must be above 0 and below 1, not 0.0"),
        ({"std": (1.0, 0.0, 1.0)}, "std must be above 0, not [1.0, 0.0, 1.0]"),
        ({"mean": (0.5,)}, "mean must be null, or a number for each of the channels (3), not [0.5]"),
        ({"mean": (0.5, 0.5, math.nan)}, "mean must be null, or a number for each of the channels (3), not"),
        ({"channels": 0}, "channels must be 1 or more, not 0"),
        ({"shift": 32}, "shift 32 and cutout 0 must lie between 0 and image_size 32"),
        ({"subset": 0}, "subset must be null, or 1 or more, not 0"),
        ({"cutmix": 1.5}, "cutmix must lie between 0 and 1, not 1.5"),
        ({"cutout": 33}, "shift 0 and cutout 33 must lie between 0 and image_size 32"),
    ],
)
def test_values_out_of_range_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        data(**options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 31}, "batch_size 31 is larger than the training set of 30 images"),
        ({"subset": 31}, "subset must be at most 30, the images to train on, not 31"),
        ({"channels": 4}, "the images have 3 channels, but channels is 4: set data.channels=3"),
        ({"val_fraction": 0.001}, "the validation set is empty: 40 training images are too few to split"),
        ({"val_fraction": 0.999}, "the training set is empty: 40 training images are too few to split"),
    ],
)
def test_data_that_cannot_be_split_so_is_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        data(**options).setup()
