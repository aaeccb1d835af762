"""Decodes image files to pixels: upright, with 8 bits a channel, opaque or not, all of one size."""

import os
import stat
import sys
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # PIL's names
LARGEST_IMAGE = 2**26  # pixels; as RGBA they take 256 MiB in each process that decodes
GREY = (128, 128, 128)
NAMED = 20  # files in a message
# PIL recognizes these formats, but has no decoder for them, or runs another program on the file (Ghostscript).
NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}


class BrokenFilesError(ValueError):
    """Some of the files that were decoded are no readable images.

    broken: what is wrong, by path. paths: of all files.
    """

    def __init__(self, broken: Mapping[str, str], paths: Collection[str]) -> None:
        first, said = next(iter(broken.items()))
        if len(broken) > 1:
            why = said.removeprefix(f"{first} is not a readable image: ")
            those = f"{len(broken)} of {len(paths)} files"
            said = f"{those} are no readable images: {listed(list(broken))}; repair or remove them ({first}: {why})"
        super().__init__(said)
        self.broken, self.paths = broken, paths


def listed(names: Sequence[str]) -> str:
    """The first `NAMED` of some names, and how many there are besides."""
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


@cache
def formats() -> list[str]:
    """PIL's names of the formats that are decoded. PIL tries them on a file in this order, so the usual come first."""
    Image.init()
    return sorted(set(Image.ID) - NOT_DECODED, key=lambda name: (name not in ("JPEG", "PNG"), name))


@cache
def extensions() -> tuple[str, ...]:
    """The extensions of image files, such as .png, in lower case."""
    known = set(formats())
    return tuple(sorted(ending for ending, name in Image.registered_extensions().items() if name in known))


def decode_files(paths: Sequence[str], channels: int, side: int) -> tuple[Tensor, int]:
    """Decodes files with a process for each core: uint8 (N, channels, side, side), and how many were resized.

    Without fork, this process decodes them: with small images, threads spend their time waiting for each other.
    A DataLoader ends quietly on Ctrl-C, unlike a pool of processes.
    Raises BrokenFilesError if files are no readable images, ValueError if the images do not fit into memory, and
    OSError if a decoding process is killed.
    """
    check_memory(len(paths), channels, side)
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 0
    loader: DataLoader[str] = DataLoader(
        paths,  # type: ignore[arg-type]  # a list is a dataset: it has items and a length
        batch_size=max(1, min(100, len(paths) // (4 * cores or 1))),
        num_workers=cores,
        multiprocessing_context="fork" if cores else None,
        collate_fn=partial(decode_chunk, channels, side),
        generator=torch.Generator(),  # the default one is the run's, which must not depend on decoding
    )
    images = torch.empty(len(paths), channels, side, side, dtype=torch.uint8)
    pixels = images.numpy()  # torch would copy with threads, which take the cores from the decoding processes
    done, resized = 0, 0
    broken: dict[str, str] = {}
    try:
        for part, others, wrong in loader:
            pixels[done : done + len(part)] = part
            done, resized, broken = done + len(part), resized + others, broken | wrong
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ChildProcessError(
            f"a process that decoded the images was killed, after {done} of {len(paths)}: it may have run out of memory"
        ) from error
    if broken:
        raise BrokenFilesError(broken, paths)
    return images, resized


def check_memory(count: int, channels: int, side: int) -> None:
    """Raises ValueError if so many images do not fit into the machine's memory, or its control group's."""
    if not hasattr(os, "sysconf"):
        return
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError):  # there is none, or it says "max"
        memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8")))
    needed = 2 * count * channels * side**2  # the split into training and validation is a copy
    if needed > memory:
        raise ValueError(
            f"{count} images of {channels} x {side} x {side} need {needed / 2**30:,.1f} GiB of memory, but there are "
            f"{memory / 2**30:,.1f} GiB: set a smaller data.image_size, or use fewer images"
        )


def decode_chunk(channels: int, side: int, paths: list[str]) -> tuple[np.ndarray, int, dict[str, str]]:
    """Decodes some files in this process: the images, how many were resized, and what is wrong with which path.

    An error that is raised in a DataLoader's process would print a traceback.
    """
    images = np.zeros((len(paths), channels, side, side), dtype=np.uint8)
    resized = 0
    broken = {}
    with warnings.catch_warnings(action="ignore"):  # what PIL warns of is refused below, or does no harm
        for index, path in enumerate(paths):
            try:
                images[index], other = decode(path, channels, side)
                resized += other
            except ValueError as error:
                broken[path] = str(error)
    return images, resized, broken


def decode(path: str, channels: int, side: int, background: tuple[int, int, int] = GREY) -> tuple[np.ndarray, bool]:
    """The image of a file, uint8 (channels, side, side), and whether it was resized.

    A photo is turned upright as its EXIF data says, and of an animation the first frame is taken.
    channels: see `MODES`. With 1 and 3, transparent pixels show the colour `background`, RGB.
    Images of 16 bits keep their upper 8; floats in [0, 1] are multiplied by 255.
    Raises ValueError for a file that is not a readable image, or has more than `LARGEST_IMAGE` pixels.
    """
    with naming(path):
        image = converted(read(path), channels, background)
    return to_array(image, side), image.size != (side, side)


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Turns whatever goes wrong in decoding an image into a ValueError that names it."""
    try:
        yield
    except Exception as error:  # each of PIL's decoders has its own
        raise ValueError(f"{name} is not a readable image: {reason(error)}") from error


def read(path: str) -> Image.Image:
    """The whole image of a file, upright and with 8 bits a channel. Raises exceptions of many classes, see `naming`."""
    with open_regular(path) as stream, Image.open(stream, formats=formats()) as file:
        if file.width * file.height > LARGEST_IMAGE:
            raise ValueError(
                f"it has {file.width} x {file.height} pixels, and {LARGEST_IMAGE:,} are the most that are read"
            )
        file.load()
        with suppress(Exception):  # EXIF data may be damaged in many ways, and the image is whole
            ImageOps.exif_transpose(file, in_place=True)
        return eight_bits(file)


def converted(image: Image.Image, channels: int, background: tuple[int, int, int]) -> Image.Image:
    """A copy of an image with 8 bits, with so many channels; with 1 and 3, over the colour `background`."""
    if channels in (1, 3) and image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image.convert("RGBA"))
    return image.convert(MODES[channels])


def to_array(image: Image.Image, side: int) -> np.ndarray:
    """The pixels of an image that is resized to a square: uint8 (channels, side, side)."""
    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(side, side, -1).transpose(2, 0, 1)


def open_regular(path: str) -> BinaryIO:
    """Opens a file to read it. Raises ValueError for a pipe or a device, which could keep the reader waiting."""
    # PIL would map a file that it opens itself, and die by a signal if the file was shortened meanwhile.
    stream = open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise ValueError("it is not a regular file")
    return stream


def eight_bits(image: Image.Image) -> Image.Image:
    """The image with 8 bits a channel. Raises ValueError if it is not clear which values are black and white."""
    # PIL gives a PGM file of 16 bits as 32, and its own conversions clip all values above 255.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode not in ("I", "F"):
        return image
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode == "F" and low >= 0 and high <= 1:
        return Image.fromarray((values * 255).round().astype(np.uint8))
    kind = "floats" if image.mode == "F" else "32-bit integers"
    raise ValueError(
        f"its values are {kind} from {low:g} to {high:g}; save it with 8 or 16 bits, or as floats from 0 to 1"
    )


def reason(error: Exception) -> str:
    """An error in words, without the path, which PIL and the system write in different ways."""
    if isinstance(error, UnidentifiedImageError):
        return "its content is of no known format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
