"""Where a figure comes from: the machine, the versions, the code and the command that gave it."""

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from stn.classifier import versions

FEATURES = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")  # of processors; the first ones compute in bfloat16


def provenance(device: torch.device | None = None) -> dict[str, Any]:
    """The command, the commit, the date, the machine and the versions. The commit is None outside a checkout."""
    return {
        "command": command(),
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(device or torch.device("cpu")),
        "versions": versions() | {"python": platform.python_version()},
    }


def command() -> str:
    """The command that started this process; in a job of a sweep, that which runs this job alone."""
    if HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN:
        return shlex.join(["python", "-m", "stn.train", *HydraConfig.get().overrides.task])
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = ["-m", spec.name.removesuffix(".__main__")] if spec else [sys.argv[0]]
    return shlex.join(["python", *program, *sys.argv[1:]])


def commit() -> str | None:
    """The commit of the checkout that this code is in, with "-dirty" if files have been changed since."""
    checkout = Path(__file__).resolve().parent.parent
    if not (checkout / ".git").exists():  # installed, perhaps within a checkout of something else
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=12", "--match="]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


def machine(device: torch.device) -> dict[str, Any]:
    """The processor with its fastest instructions, the cores, the threads, and the GPU if `device` is one."""
    name, flags = platform.processor() or platform.machine(), ""
    if Path("/proc/cpuinfo").exists():
        lines = [line.partition(": ") for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()]
        name = next((value for key, _, value in lines if key.startswith("model name")), name)
        flags = next((value for key, _, value in lines if key.startswith("flags")), "")
    found = {
        "processor": name,
        "features": [feature for feature in FEATURES if feature in flags.split()],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    return found | ({"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {})
