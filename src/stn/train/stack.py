"""Several runs that train as one program, side by side, each as if it were alone.

Every replica keeps its own network, stream of images, optimiser, schedule, curve and record. On CUDA each has a stream
of kernels of its own (`stn.tasks.series`), and so small networks, none of which keeps a GPU busy, share it. On a CPU
they take turns.
"""

import time
from collections.abc import Sequence

import pytorch_lightning as pl
from torch import nn

from stn.tasks.classification import Classification
from stn.tasks.series import Series


class Stack(pl.LightningModule):
    """Trains `replicas`, runs of the same `stack_key`, chunk by chunk together.

    When one diverges the others do not notice. `train_s` of a replica is on the CPU its own time. On CUDA, where none
    has a time of its own, it is 1/R of the stack's: it tells of all together, and nothing of one beside another.
    Raises: ValueError for replicas that differ in how many steps they take, or in how many there are to a chunk.
    """

    def __init__(self, replicas: Sequence[Classification]) -> None:
        super().__init__()
        self.automatic_optimization = False
        if len({(replica.recipe.steps, replica.chunk_steps) for replica in replicas}) != 1:
            raise ValueError("the runs of a stack must have the same number of steps")
        self.replicas = nn.ModuleList(replicas)
        self.config_hash = ""  # as of a single run
        self.recipe, self.slice = replicas[0].recipe, replicas[0].slice

    @property
    def steps_done(self) -> int:
        return self.replicas[0].steps_done

    def configure_optimizers(self):
        pairs = [replica.recipe.optimiser_of(replica.net) for replica in self.replicas]
        return [optimiser for optimiser, _ in pairs], [schedule for _, schedule in pairs]

    def train_dataloader(self) -> range:
        return self.replicas[0].train_dataloader()

    def setup(self, stage: str) -> None:
        for replica in self.replicas:
            replica.setup(stage)
        self.series = [replica.series or Series(replica) for replica in self.replicas]

    def teardown(self, stage: str) -> None:
        self.series = []
        for replica in self.replicas:
            replica.teardown(stage)

    def on_train_start(self) -> None:
        self._stop_when_done()

    def _stop_when_done(self) -> None:
        if self.steps_done == self.recipe.steps or all(replica.diverged for replica in self.replicas):
            self.trainer.should_stop = True

    def training_step(self, _: int, batch_idx: int) -> None:
        pairs = zip(self.optimizers(use_pl_optimizer=False), self.lr_schedulers(), strict=True)
        started, own_s, chunks = time.perf_counter(), [], []
        for series, pair in zip(self.series, pairs, strict=True):
            begun = time.perf_counter()
            chunks.append(series.train_chunk(*pair))  # on CUDA only started
            own_s.append(time.perf_counter() - begun)
        for replica, series, chunk in zip(self.replicas, self.series, chunks, strict=True):
            series.wait()
            replica.end_chunk(*chunk)
        if self.device.type == "cuda":
            own_s = [(time.perf_counter() - started) / len(chunks)] * len(chunks)
        for replica, seconds in zip(self.replicas, own_s, strict=True):
            replica.train_s += seconds
        self._stop_when_done()

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["config_hash"] = self.config_hash
        checkpoint["replicas"] = [{} for _ in self.replicas]
        for replica, entry in zip(self.replicas, checkpoint["replicas"], strict=True):
            replica.on_save_checkpoint(entry)

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        for replica, entry in zip(self.replicas, checkpoint["replicas"], strict=True):
            replica.on_load_checkpoint(entry)
