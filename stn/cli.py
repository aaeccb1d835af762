"""Shared by all commands: exit codes, error messages and tables."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import threading
import traceback
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from stn.config import explain
from stn.errors import DivergedError, InexactExportError, LostProcessError

log = logging.getLogger(__name__)

FAILED = 1  # a bug, or a training that broke off
BAD_INPUT = 2
INTERRUPTED = 130  # the shell's exit code for a program ended by Ctrl-C
SIGNALLED = 128  # and, with the signal's number added, by another signal


received: list[int] = []  # signals that end the program


class Terminated(KeyboardInterrupt):
    """The process was asked to end: by SIGTERM, which schedulers send, or by SIGHUP, when its terminal is gone."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class JobFailedError(Exception):
    """A job of a sweep ended with an exit code; its error was printed already."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@contextmanager
def exit_codes(program: str) -> Iterator[None]:
    """Prints errors, and exits with 2 for bad input, 128 and its number for a signal (Ctrl-C: 130), 1 for all else."""
    outlive_readers()
    raise_on_signals()
    try:
        yield
    except Terminated as signalled:
        print(f"{program}: terminated", file=sys.stderr)
        sys.exit(SIGNALLED + signalled.number)
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except JobFailedError as failed:
        sys.exit(failed.code)
    except Exception as error:
        if received:  # while a library was being imported, which made another error of it
            print(f"{program}: terminated", file=sys.stderr)
            sys.exit(SIGNALLED + received[0])
        sys.exit(report_error(program, error))


def raise_on_signals() -> None:
    """Has SIGTERM and SIGHUP end the program as Ctrl-C does, but by `Terminated`. Only the first one counts."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread handles signals
        return
    handled = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    handled = [number for number in handled if signal.getsignal(number) is not signal.SIG_IGN]  # as nohup asks

    def end(number: int, frame: object) -> None:
        for other in handled:
            signal.signal(other, signal.SIG_IGN)
        received.append(number)
        raise Terminated(number)

    for number in handled:
        signal.signal(number, end)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Delays signals to the end of the block: a library that is imported there may swallow what they raise."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread handles signals
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    handlers = {number: handler for number in numbers if callable(handler := signal.getsignal(number))}
    arrived: list[int] = []
    for number in handlers:
        signal.signal(number, lambda number, frame: arrived.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if arrived:  # also in place of an error of the import
            signal.raise_signal(arrived[0])


def outlive_readers() -> None:
    """Has the program go on when nobody reads its output any more, as after `| head -1`, or the disk is full.

    A terminal that has no ± or θ shows a question mark.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
            continue
        with suppress(OSError):  # replaced by something that is no file, as in a notebook
            raw = io.BufferedWriter(_Unread(stream))
            errors = stream.errors if stream.encoding.lower().startswith("utf") else "replace"
            setattr(sys, name, io.TextIOWrapper(raw, stream.encoding, errors, line_buffering=True))


class _Unread(io.FileIO):
    """The file under a text stream, of which a part may be lost."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        super().__init__(stream.fileno(), "w", closefd=False)
        self.stream = stream  # would close the file if it were collected

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            return len(data)


def report_error(program: str, error: BaseException, folder: str | Path | None = None) -> int:
    """Prints an error, one sentence or, for a bug, a traceback, and returns the exit code.

    folder: error.txt in it gets the error with its traceback.
    """
    broke_off = isinstance(error, (DivergedError, InexactExportError, LostProcessError))
    sentence = str(error) if broke_off else explain(error)
    trace = "".join(traceback.format_exception(error))
    text = f"{program}: {sentence}\n" if sentence else trace
    sys.stderr.write(text)
    if folder:
        with suppress(OSError):
            # A file name in it may be no text, on Linux any bytes.
            Path(folder, "error.txt").write_text(
                f"{text}\n{trace}" if sentence else trace, encoding="utf-8", errors="backslashreplace"
            )
    return BAD_INPUT if sentence and not broke_off else FAILED


def rank() -> int:
    """The number of this process among those that torchrun, SLURM or Lightning started on all machines, otherwise 0."""
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
    return max((int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()), default=0)


def printable(text: str) -> str:
    """A text from a file without control characters, which a terminal obeys, and without bytes that are no text."""
    return "".join("�" if unicodedata.category(letter) in ("Cc", "Cs") else letter for letter in text)


def say(text: str) -> None:
    """Prints a text, and keeps it in the run's train.log."""
    print(text)
    log.info(text)


def print_table(values: Mapping[str, Any]) -> None:
    """Prints names and values as a table. Accuracies are in %."""
    from rich.console import Console  # here, since --help must not wait for it
    from rich.table import Table

    table = Table(show_header=False)
    for name, value in values.items():
        if isinstance(value, str):
            shown = value
        elif name.endswith("accuracy"):
            shown = f"{value:.2%}"
        else:
            shown = f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"
        table.add_row(name.replace("_", " "), shown)
    Console().print(table)
