import re
from typing import Any

import pytest
import torch
from torch import Tensor

from stn.data.resident import ResidentDataModule


class Counted(ResidentDataModule):
    """Each image is filled with its number."""

    train, test, side = 40, 10, 32

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        self.classes = ["even", "odd"]
        number = torch.arange(self.train) if train else 100 + torch.arange(self.test)
        images = number.to(torch.uint8)[:, None, None, None].expand(-1, 3, self.side, self.side)
        return images.contiguous(), number % 2


def data(**options: Any) -> Counted:
    return Counted(**{"num_classes": 2, "batch_size": 8, "val_fraction": 0.25} | options)


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


def test_validate_on_test_trains_on_all_and_scores_the_test_set() -> None:
    module = data(validate_on="test")
    module.setup()
    assert numbers(module.images["train"]) == list(range(40))
    assert numbers(module.images["val"]) == numbers(module.images["test"]) == list(range(100, 110))


def test_training_is_augmented_and_scoring_is_not() -> None:
    module = data(flip=True, shift=2, cutout=4, batch_size=30, eval_batch_size=7)
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
    ("options", "said"),
    [
        ({"batch_size": 0}, "batch_size must be 1 or more, not 0"),
        ({"eval_batch_size": 0}, "eval_batch_size must be 1 or more, not 0"),
        ({"image_size": 0}, "image_size must be 1 or more, not 0"),
        ({"val_fraction": 0.0}, "val_fraction must lie between 0 and 1, not 0.0"),
        ({"std": (1.0, 0.0, 1.0)}, "std above 0, not"),
        ({"mean": (0.5,)}, "mean and std must be 3 numbers each"),
        ({"shift": 32}, "shift 32 and cutout 0 must lie between 0 and image_size 32"),
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
        ({"num_classes": 3}, "the data has 2 classes, but num_classes is 3: set data.num_classes=2"),
        ({"val_fraction": 0.001}, "the val set is empty: 40 training images are too few to split"),
    ],
)
def test_data_that_cannot_be_split_so_is_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        data(**options).setup()
