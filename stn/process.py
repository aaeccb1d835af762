"""Settings of the whole process, which every command makes before it computes."""

import ctypes
import logging
import warnings
from contextlib import suppress


def tune_malloc() -> None:
    """Has the C library keep freed memory for the next step: fresh pages cost a fifth of a training step on a CPU."""
    mmap_max, trim_threshold = -4, -1
    with suppress(AttributeError, OSError, TypeError):  # another C library than GNU's
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)


def silence_lightning() -> None:
    """Hides Lightning's advertisements, and its warnings about what this project does on purpose."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    for message in (
        "Experiment logs directory .* exists",
        "Checkpoint directory .* exists",
        "The number of training batches",
        "Precision .* is not supported by the model summary",
        ".*isinstance.treespec, LeafSpec.",
        "`torch.jit.script` is deprecated",  # torch's own forward derivatives are scripts
    ):
        warnings.filterwarnings("ignore", message=message)
