import pickle
import tarfile
from pathlib import Path
from urllib.request import urlretrieve

import numpy as np
import pytest
import torch
import torchvision.datasets.cifar as published
from conftest import write_mnist

from stn.data import CIFAR10DataModule, MNISTDataModule


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with CIFAR-10's files, of 12 and 6 images; torchvision reads it, but for its checksums."""
    monkeypatch.setattr(published, "check_integrity", lambda path, md5=None: Path(path).is_file())
    folder = tmp_path / published.CIFAR10.base_folder
    folder.mkdir()
    names = [name for name, _ in published.CIFAR10.train_list]
    for index, name in enumerate([*names, "test_batch"]):
        count = 6 if name == "test_batch" else 12
        content = {"data": np.full((count, 3072), index, dtype=np.uint8), "labels": [k % 10 for k in range(count)]}
        content["data"][:, :1024] = 200  # the red plane comes first
        (folder / name).write_bytes(pickle.dumps(content))
    labels = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": labels}))
    return tmp_path


def test_reads_torchvisions_files(root: Path) -> None:
    data = CIFAR10DataModule(root=str(root), batch_size=4, validate_on="test")
    data.prepare_data()
    data.setup()
    assert data.images["train"].shape == (60, 3, 32, 32) and data.images["train"].dtype is torch.uint8
    assert (data.images["train"][:, 0] == 200).all()
    assert data.images["train"][:, 1, 0, 0].tolist() == [index for index in range(5) for _ in range(12)]
    assert (data.images["test"][:, 2] == 5).all()
    assert data.labels["test"].tolist() == [0, 1, 2, 3, 4, 5]
    assert list(data.classes) == published.CIFAR10(root).classes


def test_the_home_folder_is_understood(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(root.parent))
    data = CIFAR10DataModule(root=f"~/{root.name}", batch_size=4)
    data.prepare_data()
    data.setup("fit")
    assert len(data.images["train"]) + len(data.images["val"]) == 60


def test_without_files_and_network_it_says_where_they_belong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(published, "download_and_extract_archive", refuse)
    with pytest.raises(OSError, match=r"CIFAR-10 is not in .*put the folder cifar-10-batches-py .*data=shapes"):
        CIFAR10DataModule(root=str(tmp_path)).prepare_data()


def test_an_archive_with_another_checksum_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = tmp_path / "served.tar.gz"
    with tarfile.open(served, "w:gz") as archive:
        archive.add(__file__, f"{published.CIFAR10.base_folder}/data_batch_1")
    monkeypatch.setattr(published.CIFAR10, "url", served.as_uri())
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", urlretrieve)  # theirs reads no file:// address
    with pytest.raises(OSError, match="corrupted"):
        CIFAR10DataModule(root=str(tmp_path / "data")).prepare_data()
    assert [path.name for path in (tmp_path / "data").iterdir()] == [published.CIFAR10.filename]


def test_a_file_with_another_checksum_is_not_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the checksums are those of torchvision again
    with pytest.raises(RuntimeError, match="corrupted"):
        CIFAR10DataModule(root=str(root)).read(train=True)


def test_reads_mnist(tmp_path: Path) -> None:
    write_mnist(tmp_path, {"train": 30, "t10k": 7})
    data = MNISTDataModule(root=str(tmp_path), channels=1, image_size=28, batch_size=4, validate_on="test")
    data.prepare_data()
    data.setup()
    assert data.images["train"].shape == (30, 1, 28, 28) and data.images["train"][:, 0, 9, 9].tolist() == list(
        range(30)
    )
    assert data.images["test"].dtype is torch.uint8 and data.labels["test"].tolist() == list(range(7))


def test_without_mnists_files_it_says_where_they_belong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", refuse)
    with pytest.raises(OSError, match=r"MNIST is not in .*put the folder MNIST/raw there"):
        MNISTDataModule(root=str(tmp_path), channels=1, image_size=28).prepare_data()
