"""The progress of a training: a bar on a terminal, and one line for each epoch."""

import sys
import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar, RichProgressBar


def progress_bar() -> ProgressBar:
    """A bar with the finished epochs above it on a terminal; elsewhere the lines of the epochs alone."""
    return EpochBar() if sys.stdout.isatty() else EpochLines()


class Clock:
    """Tells how long each epoch took, and about how long the others will take."""

    def __init__(self) -> None:
        self.started = self.last = time.monotonic()
        self.epochs = 0

    def line(self, trainer: pl.Trainer) -> str:
        """Number, accuracies, loss and time of the epoch that ends, in one line."""
        now = time.monotonic()
        self.epochs += 1
        took, mean = now - self.last, (now - self.started) / self.epochs
        self.last = now
        epoch, last = trainer.current_epoch + 1, trainer.max_epochs or 0
        found = trainer.callback_metrics
        said = [f"accuracy {found['train/accuracy']:.2%}", f"loss {found['train/loss']:.3f}"]
        if epoch % (trainer.check_val_every_n_epoch or 1) == 0 and "val/accuracy" in found:
            said.append(f"validation accuracy {found['val/accuracy']:.2%}")
        said.append(duration(took))
        if last > epoch:
            said.append(f"{duration((last - epoch) * mean)} left")
        return f"epoch {epoch:{len(str(last))}} of {last}: " + ", ".join(said)


def duration(seconds: float) -> str:
    """Seconds as a person says them: 4.2 s, 3 min 05 s, 2 h 10 min."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


class EpochLines(ProgressBar):
    """Prints a line at the end of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.enabled = True

    def disable(self) -> None:
        self.enabled = False  # in all processes but the first

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.clock = Clock()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        line = self.clock.line(trainer)  # in every process: metrics are added up over them
        if self.enabled:
            print(line, flush=True)


class EpochBar(RichProgressBar):
    """Rich's bar, drawn five times a second, with a line above it for each epoch that has ended."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=5)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.clock = Clock()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        line = self.clock.line(trainer)
        if self.is_enabled and self.progress:
            self.progress.console.print(line, markup=False, highlight=False)

    def _get_train_description(self, current_epoch: int) -> str:
        return f"epoch {current_epoch + 1} of {self.trainer.max_epochs}"

    def get_metrics(self, *trainer_and_module: Any) -> dict[str, Any]:
        """None: the lines have them."""
        return {}
