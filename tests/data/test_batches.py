import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms.functional import hflip

from stn.data.batches import Augmentation, Batches


def numbered(count: int, size: int = 8) -> Tensor:
    """Images of which each pixel tells which image, row and column it is."""
    images = torch.zeros(count, 3, size, size, dtype=torch.uint8)
    images[:, 0] = torch.arange(count)[:, None, None]
    images[:, 1] = torch.arange(size)[:, None]
    images[:, 2] = torch.arange(size)
    return images


def batches(count: int = 25, batch_size: int = 10, **options: object) -> Batches:
    return Batches(numbered(count), torch.arange(count), batch_size=batch_size, **options)  # type: ignore[arg-type]


def epoch(found: Batches, number: int) -> list[tuple[Tensor, Tensor]]:
    found.set_epoch(number)
    return list(found)


def test_without_augmentation_every_image_comes_once_in_order() -> None:
    parts = list(batches())
    assert [len(labels) for _, labels in parts] == [10, 10, 5] and len(batches()) == 3
    assert torch.cat([labels for _, labels in parts]).tolist() == list(range(25))
    assert torch.equal(torch.cat([images for images, _ in parts]), numbered(25))


def test_each_epoch_has_its_own_order_and_repeats_itself() -> None:
    first, again, second = (epoch(batches(augmentation=Augmentation(shift=2)), number) for number in (0, 0, 1))
    assert [len(labels) for _, labels in first] == [10, 10]
    for (images, labels), (same_images, same_labels) in zip(first, again, strict=True):
        assert torch.equal(images, same_images) and torch.equal(labels, same_labels)
    assert not torch.equal(first[0][1], second[0][1])
    other_seed = epoch(batches(augmentation=Augmentation(shift=2), seed=1), 0)
    assert not torch.equal(first[0][1], other_seed[0][1])


def test_the_order_says_nothing_of_the_shift() -> None:
    """Of 900 numbered images with 5 shifts: a draw that chooses both would give each residue one shift."""
    ramp = torch.arange(16, dtype=torch.uint8).view(1, 1, 16, 1).expand(900, 1, 16, 16)
    found = Batches(ramp.contiguous(), torch.arange(900), batch_size=300, augmentation=Augmentation(shift=2))
    agreed = 0
    for number in range(40):
        images, labels = epoch(found, number)[0]
        agreed += int(images[0, 0, 8, 0]) - 8 == int(labels[0]) % 5 - 2
    assert agreed < 20


def test_labels_stay_with_their_images() -> None:
    for images, labels in epoch(batches(augmentation=Augmentation(flip=True, shift=3)), 3):
        assert torch.equal(images[:, 0, 0, 0].long(), labels)


def test_flip_mirrors_half_of_the_images_and_the_others_in_the_next_epoch() -> None:
    images = torch.randint(256, (400, 3, 8, 8), dtype=torch.uint8)
    found = Batches(images, torch.arange(400), batch_size=400, augmentation=Augmentation(flip=True))
    mirrored = []
    for number in range(3):
        ((seen, labels),) = epoch(found, number)
        originals = images[labels]
        flipped = (seen == hflip(originals)).flatten(1).all(dim=1)
        assert torch.equal(flipped, ~(seen == originals).flatten(1).all(dim=1))
        mirrored.append(flipped[labels.argsort()])
    assert 150 < mirrored[0].sum() < 250
    assert torch.equal(mirrored[1], ~mirrored[0]) and torch.equal(mirrored[2], mirrored[0])


def test_shift_moves_by_whole_pixels_and_reflects_the_border() -> None:
    shift, size = 3, 8
    images = numbered(200, size)
    moved = Augmentation(shift=shift).move(images, torch.zeros(200, dtype=torch.bool), torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images.float(), (shift,) * 4, mode="reflect").byte()
    offsets = set()
    for image, source in zip(moved, padded, strict=True):
        crops = {
            (row, column): source[:, row : row + size, column : column + size]
            for row in range(2 * shift + 1)
            for column in range(2 * shift + 1)
        }
        offsets |= {offset for offset, crop in crops.items() if torch.equal(image, crop)}
    rows, columns = zip(*offsets, strict=True)
    assert set(rows) == set(columns) == set(range(2 * shift + 1))


def test_cutout_sets_one_square_to_the_mean() -> None:
    images, fill = torch.ones(300, 3, 16, 16, dtype=torch.uint8), torch.tensor([7, 8, 9]).byte()[:, None, None]
    erased = Augmentation(cutout=6).erase(images, fill, torch.Generator().manual_seed(0)) == fill
    assert torch.equal(erased[:, 0], erased[:, 2])
    heights, widths = erased[:, 0].any(dim=2).sum(dim=1), erased[:, 0].any(dim=1).sum(dim=1)
    assert torch.equal(erased[:, 0].sum(dim=(1, 2)), heights * widths)
    assert heights.max() == widths.max() == 6 and heights.min() >= 1
    assert erased[:, 0].any(dim=0).all()


def test_cutout_fills_with_the_mean_colour() -> None:
    found = batches(augmentation=Augmentation(cutout=8), mean=(0.1, 0.2, 0.3))
    images, _ = next(iter(found))
    assert {26, 51, 76} <= {int(value) for value in images.unique()}


@pytest.mark.parametrize("part", [0.5, 1.0])
def test_a_mixed_image_shows_each_class_in_its_share(part: float) -> None:
    labels = torch.arange(400) % 5
    images = labels.float()[:, None, None, None].expand(-1, 3, 16, 16)
    mixed, shares = Augmentation(cutmix=part).mix(images, labels, 6, torch.Generator().manual_seed(0))
    shown = torch.stack([(mixed[:, 0] == label).float().mean(dim=(1, 2)) for label in range(6)], dim=1)
    torch.testing.assert_close(shares, shown)
    intact = shares.amax(dim=1) == 1
    assert abs(1 - part - intact.float().mean().item()) < 0.1
    other = 1 - shares[torch.arange(400), labels]
    assert other[~intact].max() > 0.7 and other.mean() > part * 0.2
    assert torch.equal(mixed[intact], images[intact])


def test_mixed_batches_have_shares_for_labels() -> None:
    augmentation = Augmentation(cutmix=1.0)
    first, again = (epoch(batches(augmentation=augmentation, classes=25), 0) for _ in range(2))
    for (images, shares), (same_images, same_shares) in zip(first, again, strict=True):
        assert shares.shape == (10, 25)
        torch.testing.assert_close(shares.sum(dim=1), torch.ones(10))
        assert torch.equal(images, same_images) and torch.equal(shares, same_shares)


@pytest.mark.parametrize("augmentation", [None, Augmentation()])
def test_ranks_share_a_pass(augmentation: Augmentation | None) -> None:
    whole = [batches(24, 4, augmentation=augmentation, rank=rank, world_size=2) for rank in (0, 1)]
    labels = [torch.cat([labels for _, labels in epoch(share, 5)]).tolist() for share in whole]
    assert len(labels[0]) == len(labels[1]) == 12
    assert sorted(labels[0] + labels[1]) == list(range(24))


def test_ranks_get_as_many_training_batches_each() -> None:
    shares = [batches(25, 4, augmentation=Augmentation(), rank=rank, world_size=2) for rank in (0, 1)]
    assert {len(share) for share in shares} == {len(list(share)) for share in shares} == {3}


def test_torchs_dataloader_reads_the_same_images_one_by_one() -> None:
    """The reference is the usual way: a data set of single images, collated."""
    images, labels = numbered(25), torch.arange(25)
    usual = DataLoader(torch.utils.data.TensorDataset(images, labels), batch_size=10)
    for (ours, truth), (theirs, expected) in zip(batches(), usual, strict=True):
        assert torch.equal(ours, theirs) and torch.equal(truth, expected)
