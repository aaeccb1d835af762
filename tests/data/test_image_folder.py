import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stn.data import ImageFolderDataModule, image_folder


def write(path: Path, value: int, size: tuple[int, int] = (32, 32), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 0, 255 - value)).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split, count in (("train", 8), ("test", 3)):
        for label, name in enumerate(["ant", "bee"]):
            for index in range(count):
                write(tmp_path / split / name / f"{index:02}.png", 100 * label + index)
    return tmp_path


def data(root: Path, **options: object) -> ImageFolderDataModule:
    settings = {"batch_size": 4, "val_fraction": 0.25} | options
    return ImageFolderDataModule(root=str(root), **settings)


def test_reads_the_tree_in_order_with_its_classes(root: Path) -> None:
    module = data(root)
    images, labels = module.read(train=True)
    assert module.classes == ["ant", "bee"]
    assert labels.tolist() == [0] * 8 + [1] * 8
    assert images.dtype is torch.uint8 and images.shape == (16, 3, 32, 32)
    assert images[:, 0, 0, 0].tolist() == [*range(8), *range(100, 108)]
    assert (images[:, 2] == 255 - images[:, 0]).all()


def test_gray_images_subfolders_and_other_files(root: Path) -> None:
    write(root / "train" / "ant" / "more" / "gray.jpg", 77, mode="L")
    (root / "train" / "ant" / "notes.txt").write_text("not an image")
    (root / "train" / ".cache").mkdir()
    (root / "train" / "ant" / "._00.png").write_text("what a Mac adds to each file")
    module = data(root)
    images, labels = module.read(train=True)
    assert len(labels) == 17 and module.classes == ["ant", "bee"]
    assert (images[8] - torch.tensor(77)).abs().max() <= 1


def test_decoding_leaves_the_runs_random_numbers_alone(root: Path) -> None:
    before = torch.get_rng_state()
    data(root).read(train=True)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_was_decoded_is_kept_until_a_file_changes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = data(root).read(train=True)
    decoded: list[str] = []
    decoding = image_folder.decode_files
    monkeypatch.setattr(
        image_folder, "decode_files", lambda paths, *how: decoded.extend(paths) or decoding(paths, *how)
    )
    again = data(root).read(train=True)
    assert not decoded and torch.equal(again[0], before[0]) and torch.equal(again[1], before[1])
    write(root / "train" / "ant" / "03.png", 250)
    changed, _ = data(root).read(train=True)
    assert len(decoded) == 16 and (changed[3, 0] == 250).all()
    data(root, image_size=16).read(train=True)
    assert len(decoded) == 32 and len(list(root.glob(".train-*.pt"))) == 1


@pytest.mark.parametrize("error", [OSError("no space left on device"), RuntimeError("file cannot be opened")])
def test_where_nothing_can_be_kept_it_is_decoded_each_time(
    error: Exception, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(images: torch.Tensor, path: Path) -> None:
        path.write_bytes(b"half of it")
        raise error

    monkeypatch.setattr(torch, "save", full)
    for _ in range(2):
        assert data(root).read(train=True)[0].shape == (16, 3, 32, 32)
    assert not list(root.glob(".train*"))


def test_other_sizes_are_resized_with_a_note(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(root / "train" / "ant" / "00.png", 9, size=(50, 70))
    with caplog.at_level(logging.INFO):
        images, _ = data(root).read(train=True)
    assert images.shape == (16, 3, 32, 32) and (images[0, 0] == 9).all()
    assert f"{root / 'train'}: 1 of 16 images resized to 32 x 32" in caplog.text


def test_pixels_are_pils(root: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "test" / "bee" / "00.png")
    module = data(root)
    module.read(train=True)
    images, _ = module.read(train=False)
    assert np.array_equal(images[3].permute(1, 2, 0).numpy(), noise)


def test_sixteen_bits_become_eight(root: Path) -> None:
    ramp = np.arange(1024, dtype=np.uint16).reshape(32, 32) * 64
    Image.fromarray(ramp).save(root / "train" / "ant" / "00.png")
    images, _ = data(root).read(train=True)
    assert np.array_equal(images[0, 1].numpy(), ramp // 256)


def test_an_image_too_large_to_be_meant_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"ant/00.png is not a readable image: .*decompression bomb"):
        data(root).read(train=True)


def test_a_broken_image_is_named(root: Path) -> None:
    path = root / "train" / "bee" / "03.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=f"{path} is not a readable image"):
        data(root).read(train=True)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4)])
def test_images_have_the_channels_that_are_asked_for(mode: str, channels: int, root: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, channels), dtype=np.uint8)
    Image.fromarray(noise.squeeze(), mode).save(root / "train" / "bee" / "00.png")
    module = data(root, channels=channels)
    images, _ = module.read(train=True)
    assert images.shape == (16, channels, 32, 32)
    assert np.array_equal(images[8].permute(1, 2, 0).numpy(), noise)
    module.setup("fit")
    assert len(module.mean) == len(module.std) == channels and min(module.std) > 0


def test_other_numbers_of_channels_are_named(root: Path) -> None:
    with pytest.raises(ValueError, match="channels must be one of 1, 2, 3, 4 for image files"):
        data(root, channels=5)


def test_a_test_needs_no_training_images(root: Path) -> None:
    shutil.rmtree(root / "train")
    module = data(root)
    module.setup("test")
    assert set(module.images) == {"test"} and list(module.classes) == ["ant", "bee"]
    with pytest.raises(OSError, match="train is not a folder"):
        module.setup("fit")


def test_classes_that_differ_are_named(root: Path) -> None:
    write(root / "test" / "cat" / "00.png", 1)
    module = data(root)
    module.read(train=True)
    with pytest.raises(ValueError, match=r"the classes of .*test are not those of .*train: only one .* has 'cat'"):
        module.read(train=False)


def test_an_empty_class_is_named(root: Path) -> None:
    (root / "train" / "wasp").mkdir()
    with pytest.raises(ValueError, match=r"the class folder .*train/wasp is empty"):
        data(root).read(train=True)


def test_a_root_that_is_not_such_a_tree_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"train is not a folder: data.root must hold train/<class>/<image>"):
        data(tmp_path / "absent")
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match="has no class folders"):
        data(tmp_path)


CIFAR10_JPEG = Path(__file__).resolve().parents[2] / "data" / "cifar10-jpeg"


@pytest.mark.skipif(not CIFAR10_JPEG.is_dir(), reason="the JPEG copy of CIFAR-10 is not unpacked in data/cifar10-jpeg")
def test_the_jpeg_copy_of_cifar10() -> None:
    module = data(CIFAR10_JPEG, num_classes=10)
    images, labels = module.read(train=True)
    assert images.shape == (50_000, 3, 32, 32)
    assert torch.equal(labels.bincount(), torch.full((10,), 5_000))
    # The published mean of CIFAR-10, which JPEG keeps.
    torch.testing.assert_close(
        images.float().mean(dim=(0, 2, 3)) / 255, torch.tensor([0.4914, 0.4822, 0.4465]), atol=2e-3, rtol=0
    )
