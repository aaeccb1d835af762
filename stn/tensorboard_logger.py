"""Writes TensorBoard's events so that its first charts are those of accuracy and loss."""

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_fabric.utilities.rank_zero import rank_zero_only
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
from tensorboard.plugins.hparams.summary_v2 import hparams_pb

# What the tab HPARAMS shows beside the settings: the last values of these tags.
RESULTS = {
    "test/accuracy": "test accuracy",
    "accuracy/val": "validation accuracy",
    "test/transformer_pose_error_pixels": "pose error (pixels)",
    "test/transformer_corner_error_pixels": "median corner error (pixels)",
    "test/transformer_angle_error_degrees": "median angle error (degrees)",
}
TYPES = {bool: api_pb2.DATA_TYPE_BOOL, str: api_pb2.DATA_TYPE_STRING}
# Names of metrics, and TensorBoard's tags for them. TensorBoard sorts tags, and opens the first two groups.
TAGS = (
    (r"(train|val)/(accuracy|loss)(_step)?", r"\2/\1\3"),
    (r"(learning_rate.*)", r"optimizer/\1"),
)


class OrderedTensorBoardLogger(TensorBoardLogger):
    """Lightning's TensorBoard logger, with the accuracies, then the losses as the first charts.

    train/accuracy becomes accuracy/train, and so on, see `tag`; the number of the epoch is left out.
    """

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics({tag(name): value for name, value in metrics.items() if name != "epoch"}, step)

    @rank_zero_only
    def log_row(self, settings: dict[str, Any], first: Sequence[str]) -> None:
        """Writes the settings of the run, without nesting, as its row in HPARAMS.

        first: the names of the columns that TensorBoard shows first.
        """
        columns = [
            api_pb2.HParamInfo(name=name, type=TYPES.get(type(value), api_pb2.DATA_TYPE_FLOAT64), differs=name in first)
            for name, value in settings.items()
        ]
        results = [
            api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag), display_name=name) for tag, name in RESULTS.items()
        ]
        experiment = api_pb2.Experiment(hparam_infos=columns, metric_infos=results)
        self._add(summary(metadata.EXPERIMENT_TAG, experiment=experiment))
        folder = Path(self.log_dir).resolve()
        self._add(hparams_pb(settings, trial_id=f"{folder.name} in {folder.parent.name}"))

    @rank_zero_only
    def log_success(self) -> None:
        """Marks the row of the run as finished."""
        end = SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=time.time())
        self._add(summary(metadata.SESSION_END_INFO_TAG, session_end_info=end))
        self.save()

    def _add(self, found: Summary) -> None:
        self.experiment._get_file_writer().add_summary(found)


def summary(name: str, **content: Any) -> Summary:
    """What the tab HPARAMS reads: one kind of content under its tag."""
    kept = metadata.create_summary_metadata(HParamsPluginData(**content))
    return Summary(value=[Summary.Value(tag=name, metadata=kept, tensor=metadata.NULL_TENSOR)])


def tag(name: str) -> str:
    """TensorBoard's tag for a metric."""
    for pattern, replacement in TAGS:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
    return name
