"""How many processes train one run together (Lightning's DDP), and which of them this is."""

import os

import torch
from pytorch_lightning.plugins.environments import SLURMEnvironment
from pytorch_lightning.utilities import rank_zero_only

from stn.settings import RunSettings
from stn.tasks.classification import Classification
from stn.tasks.data_parallel import BatchSlice
from stn.tasks.training import Training

OUTSIDE = ("RANK", "SLURM_PROCID")  # what torchrun and srun tell each process


def slice_of(run: RunSettings) -> BatchSlice:
    """The slice of every batch that this process of a run takes; `rank` 0 writes what is to be written."""
    return BatchSlice(rank_zero_only.rank if run.processes > 1 else 0, run.processes)


def trainer_options(run: RunSettings) -> dict:
    """What pl.Trainer is told about device and processes."""
    # Lightning would save and requeue on Slurm's SIGUSR1, in a file that a later run would take for its own.
    slurm = [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []
    return {
        "accelerator": {"cpu": "cpu", "auto": "auto", "cuda": "gpu"}[run.device],
        **run.trainer.model_dump(),
        # cuDNN computes a convolution in the way that it finds fastest: on CUDA, and there alone, what is measured on
        # the way decides in which order numbers are added.
        "benchmark": True,
        "strategy": "ddp" if run.processes > 1 else "auto",
        "plugins": slurm,
        "use_distributed_sampler": False,  # every process tests all images: as fast as one alone, nothing to gather
    }


def check_parallel(run: RunSettings, module: Training) -> None:
    """Raises: ValueError for a run that cannot be spread over so many processes, or not from here."""
    count, devices, nodes = run.processes, run.trainer.devices, run.trainer.num_nodes
    if count == 1:
        return
    if not isinstance(module, Classification):
        raise ValueError(f"trainer.devices: {run.task.name} trains in one process; allowed: 1")
    if module.recipe.batch_size % count:
        raise ValueError(f"recipe.batch_size {module.recipe.batch_size} must be a multiple of the {count} processes")
    if nodes > 1 and not any(name in os.environ for name in OUTSIDE):
        raise ValueError(f"trainer.num_nodes={nodes}: start it with srun or torchrun, as docs/clusters.md shows")
    if run.device != "cpu" and 0 < torch.cuda.device_count() < devices:
        raise ValueError(f"trainer.devices={devices}: {torch.cuda.device_count()} CUDA devices are here")
