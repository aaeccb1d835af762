"""Tests the network of a run."""

from omegaconf import DictConfig

from stn.build import build_trainer, read_data
from stn.callbacks import ThetaMonitor, progress_bar
from stn.check import check
from stn.process import prepare_process
from stn.run import Run


def evaluate(run: Run, config: DictConfig) -> dict[str, float]:
    """Accuracy, loss and, if the poses are known, pose errors on the test set of a config, on one device.

    Raises InputError for data that does not suit the network.
    """
    config = config.copy()
    config.callbacks, config.logger, config.compile = {}, {}, None
    config.trainer.devices, config.trainer.strategy = 1, "auto"
    if "num_nodes" in config.trainer:
        config.trainer.num_nodes = 1
    check(config)
    run.classifier.tta = config.tta or run.classifier.tta
    prepare_process(config)
    trainer = build_trainer(config, [ThetaMonitor(), progress_bar()])
    data = read_data(run.data(config, trainer), "test")
    (found,) = trainer.test(run.classifier, datamodule=data, verbose=False)
    return {name.removeprefix("test/"): value for name, value in found.items()}
