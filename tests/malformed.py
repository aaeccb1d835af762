"""Makes malformed overrides, and tells what a run does with each: python tests/malformed.py > found.txt

Each is tried as a user would type it, in a process of its own, with a limit of 10 seconds. A line of the output is the
outcome, the override and the sentence. Outcomes are refused, runs and diverges; traceback, signal, hang and unclear
must not be.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from conftest import TINY, started
from omegaconf import DictConfig, OmegaConf

from stn.config import compose

VALUES = ("null", "nan", "-inf", "-1", "0", "1e30", "1000000000000", "abc", "true", "[]", "[1,2]", "{a:1}", "''")
# The second one has objects that the first one lacks, whose keys are tried too.
BASES = ("", "data/distortion=rts model/warp=rotation_classes model/localization=pose pose_weight=1")
QUIET = ["callbacks.progress=null", "callbacks.summary=null", "callbacks.warps=null", "trainer.max_epochs=1"]


def keys(node: DictConfig, path: str = "") -> Iterator[str]:
    """The dotted names of all values and of all objects in a config."""
    for name in node:
        where = f"{path}.{name}".lstrip(".")
        value = OmegaConf.select(node, str(name), throw_on_missing=False)
        if isinstance(value, DictConfig):
            yield from keys(value, where)
        yield where


def overrides() -> list[tuple[str, str]]:
    """Every key of the configs with every odd value, and every key left out, each behind the base that has the key."""
    found: dict[str, str] = {}
    for base in BASES:
        for key in keys(compose([*TINY, *base.split()], "run")):
            if key in ("resume", "folder"):  # tests of their own
                continue
            for text in (*(f"{key}={value}" for value in VALUES), f"~{key}", f"+{key}.more=1"):
                found.setdefault(text, base)
    del found["trainer.max_epochs=1000000000000"]  # so many epochs are long, but no mistake
    return [(base, text) for text, base in found.items()]


def outcome(base: str, override: str) -> tuple[str, str]:
    """What a run does with an override, and the sentence that it says."""
    folder = Path(tempfile.mkdtemp())
    process = started(folder, "train", (*TINY, *QUIET, *base.split(), override))
    process.join(timeout=10)
    if process.exitcode is None:
        process.kill()
        process.join()
        return "hang", ""
    errors = (folder / ".stderr").read_text()
    sentences = [line for line in errors.splitlines() if line.startswith("stn.train: ")]
    said = sentences[0] if sentences else errors[-200:].replace("\n", " ")
    if process.exitcode < 0:
        return "signal", said
    if "Traceback" in errors:
        return "traceback", errors.strip().splitlines()[-1]
    if process.exitcode == 0:
        return "runs", ""
    if process.exitcode == 1 and sentences and "training has diverged" in said:
        return "diverges", said
    return ("refused" if process.exitcode == 2 and len(sentences) == 1 else "unclear"), said


if __name__ == "__main__":
    first, step = (int(number) for number in (sys.argv[1:] or ("0", "1")))
    for base, text in overrides()[first::step]:
        found, said = outcome(base, text)
        print(found, f"{base} {text}".strip(), said, sep="\t", flush=True)
