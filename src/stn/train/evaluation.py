"""Tests trained weights on a task, which may be another than the one they were trained on; nothing is recorded."""

import pytorch_lightning as pl
import torch

from stn.families import FAMILIES, build, network
from stn.settings import RunSettings
from stn.tasks.training import Training
from stn.train.parallel import trainer_options
from stn.train.provenance import check_device
from stn.train.run import quiet
from stn.trained import Trained


def evaluate(trained: Trained, run: RunSettings) -> Training:
    """The module of `run`, tested with these weights: it has `metrics` and `per_draw`.

    Raises: ValueError for a task that the weights do not fit; DataError where its data are not there.
    """
    check_device(run.device)
    net = trained.net()
    if run.task != trained.experiment.task:
        _check_fit(trained, run, net)
    torch.set_num_threads(run.threads)
    module = build(run).module
    module.net = net
    with quiet():
        trainer = pl.Trainer(
            **trainer_options(run), logger=False, enable_checkpointing=False, enable_model_summary=False,
            enable_progress_bar=False,
        )  # fmt: skip
        trainer.test(module, verbose=False)
    return module


def _check_fit(trained: Trained, run: RunSettings, net: torch.nn.Module) -> None:
    """Raises: ValueError unless images and labels of the run's task are those that the weights were trained for."""
    given, own = run.task, trained.experiment.task
    if FAMILIES.get(given.family) != FAMILIES[own.family]:
        raise ValueError(f"task={given.name}: weights of {own.name} fit tasks of the family {own.family} only")
    there, here = network(trained.experiment), network(run)
    if there.in_shape != here.in_shape:
        raise ValueError(f"task={given.name} has images of {here.in_shape}, these weights fit {there.in_shape}")
    images = torch.zeros(1, *here.in_shape)
    with torch.no_grad():
        shapes = [tuple(net(images).shape[1:]), tuple(here.net.eval()(images).shape[1:])]
    if shapes[0] != shapes[1]:
        raise ValueError(f"task={given.name} wants outputs of {shapes[1]}, these weights give {shapes[0]}")
