"""How many processes train one run together (Lightning's DDP), and which of them this is."""

import os

import torch
from pytorch_lightning.plugins.environments import SLURMEnvironment
from pytorch_lightning.utilities import rank_zero_only

from stn.tasks.classification import Classification
from stn.tasks.data_parallel import Part
from stn.tasks.training import Training
from stn.train.settings import processes

OUTSIDE = ("RANK", "SLURM_PROCID")  # what torchrun and srun tell each process


def part_of(settings: dict) -> Part:
    """The slice of every batch that this process of a run takes; `rank` 0 writes what is to be written."""
    count = processes(settings)
    return Part(rank_zero_only.rank if count > 1 else 0, count)


def trainer_options(settings: dict) -> dict:
    """What pl.Trainer is told about device and processes."""
    several = processes(settings) > 1
    # Lightning would save and requeue on Slurm's SIGUSR1, in a file that a later run would take for its own.
    slurm = [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []
    return {
        "accelerator": {"cpu": "cpu", "auto": "auto", "cuda": "gpu"}[settings["device"]],
        **settings["trainer"],
        "strategy": "ddp" if several else "auto",
        "plugins": slurm,
        "use_distributed_sampler": False,  # every process tests all images: as fast as one alone, nothing to gather
    }


def check_parallel(settings: dict, module: Training) -> None:
    """Raises: ValueError for a run that cannot be spread over the processes wanted, or not from here."""
    count, devices, nodes = processes(settings), settings["trainer"]["devices"], settings["trainer"]["num_nodes"]
    if count == 1:
        return
    if not isinstance(module, Classification):
        raise ValueError(f"trainer.devices: {settings['task']['name']} trains in one process; allowed: 1")
    if module.recipe.batch_size % count:
        raise ValueError(f"recipe.batch_size {module.recipe.batch_size} must be a multiple of the {count} processes")
    if nodes > 1 and not any(name in os.environ for name in OUTSIDE):
        raise ValueError(f"trainer.num_nodes={nodes}: start it with srun or torchrun, as docs/clusters.md shows")
    if settings["device"] != "cpu" and 0 < torch.cuda.device_count() < devices:
        raise ValueError(f"trainer.devices={devices}: {torch.cuda.device_count()} CUDA devices are here")
