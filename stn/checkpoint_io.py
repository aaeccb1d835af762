"""Writes checkpoints so that a crash or a full disk leaves the one before."""

import os
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from stn.errors import InputError


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its target, flushes it to the disk, and then replaces the target.

    Lightning's own goes through the temporary folder. If that is another file system, a crash leaves half a file.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Raises InputError if the file cannot be written; the one before it is kept."""
        target = Path(path)
        part = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            for left in target.parent.glob(f".{target.name}.*"):  # by a process that was killed
                left.unlink()
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(target)
            folder = os.open(target.parent, os.O_RDONLY)
            os.fsync(folder)  # the new name too must survive a loss of power
            os.close(folder)
        except (OSError, RuntimeError) as error:  # torch.save raises either
            why = str(error).splitlines()[0]
            raise InputError(f"{target} cannot be written ({why}); the checkpoint before it is kept") from error
        finally:
            part.unlink(missing_ok=True)

    def remove_checkpoint(self, path: Any) -> None:
        """Removes a single file. Lightning's own would remove a folder with all that is in it."""
        if Path(path).is_file():
            Path(path).unlink()
