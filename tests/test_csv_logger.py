"""metrics.csv is whole at every moment."""

import csv
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning.loggers import CSVLogger

from stn.csv_logger import DurableCSVLogger, read_rows

ROWS: list[dict[str, float]] = [{"loss": 2.5}, {"loss": 1.5, "rate": 0.1}, {"rate": 0.2}, {"accuracy": 0.5}]


def logged(kind: Any, folder: Path) -> Any:
    """A logger that has saved `ROWS` one by one."""
    logger = kind(folder, name="", version="")
    for step, row in enumerate(ROWS):
        logger.log_metrics(row, step)
        logger.save()
    return logger


def test_the_file_is_that_of_lightning(tmp_path: Path) -> None:
    texts = []
    for kind in (CSVLogger, DurableCSVLogger):
        logged(kind, tmp_path / kind.__name__)
        texts.append((tmp_path / kind.__name__ / "metrics.csv").read_bytes())
    assert texts[0] == texts[1]


def test_an_interruption_leaves_the_rows_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logged(DurableCSVLogger, tmp_path)
    before = (tmp_path / "metrics.csv").read_bytes()

    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    logger.log_metrics({"a new column": 1.0}, 4)
    monkeypatch.setattr(csv.DictWriter, "writerows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        logger.save()
    monkeypatch.undo()
    assert (tmp_path / "metrics.csv").read_bytes() == before
    logger.log_metrics({"loss": 0.5}, 5)
    logger.save()
    assert [row["step"] for row in read_rows(tmp_path / "metrics.csv")] == ["0", "1", "2", "3", "5"]


def test_a_new_logger_keeps_the_file_that_it_finds(tmp_path: Path) -> None:
    logged(DurableCSVLogger, tmp_path)
    before = (tmp_path / "metrics.csv").read_bytes()
    again = DurableCSVLogger(tmp_path, name="", version="")
    assert again.experiment.metrics == [] and (tmp_path / "metrics.csv").read_bytes() == before
    again.log_metrics({"loss": 0.5}, 4)
    again.save()
    assert [row["step"] for row in read_rows(tmp_path / "metrics.csv")] == ["0", "1", "2", "3", "4"]
