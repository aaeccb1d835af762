"""What the network of a finished run is worth."""

from omegaconf import DictConfig

from stn.build import build_trainer, read_data
from stn.callbacks import ThetaMonitor, progress_bar
from stn.check import check
from stn.process import silence_lightning
from stn.run import Run


def evaluate(run: Run, config: DictConfig) -> dict[str, float]:
    """Accuracy, loss and, where the poses are known, pose errors of a run's network on the test set of a config.

    Raises InputError for data that does not suit the network.
    """
    silence_lightning()
    check(config)
    quiet = config.copy()
    quiet.callbacks, quiet.logger = {}, {}
    trainer = build_trainer(quiet, [ThetaMonitor(), progress_bar()])
    data = read_data(run.data(config, trainer), "test")
    (found,) = trainer.test(run.classifier, datamodule=data, verbose=False)
    return {name.removeprefix("test/"): value for name, value in found.items()}
