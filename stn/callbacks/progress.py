"""The progress bar."""

import sys

from pytorch_lightning.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar


def progress_bar() -> ProgressBar:
    """Rich's bar on a terminal, drawn five times a second; elsewhere a line every 50 steps."""
    return RichProgressBar(refresh_rate=5) if sys.stdout.isatty() else TQDMProgressBar(refresh_rate=50)
