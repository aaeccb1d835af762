"""The network's layers, shapes and parameters, at the start of a run."""

from typing import Any

from pytorch_lightning.callbacks import RichModelSummary


class NetworkSummary(RichModelSummary):
    """Lightning's table of the network down to single layers, without the rows of the metrics."""

    def __init__(self) -> None:
        super().__init__(max_depth=4)

    @staticmethod
    def summarize(summary_data: list[tuple[str, list[str]]], *totals: Any, **options: Any) -> None:
        kept = [index for index, name in enumerate(dict(summary_data)["Name"]) if name.startswith("net")]
        rows = [(column, [values[index] for index in kept]) for column, values in summary_data]
        RichModelSummary.summarize(rows, *totals, **options)
