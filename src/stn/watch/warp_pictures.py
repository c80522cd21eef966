"""Logs to W&B what the spatial transformers see, where they look and what they pass on, at a few fixed steps."""

import tempfile
from pathlib import Path

import pytorch_lightning as pl
import wandb

from stn.watch.snapshots import looked_at

PICTURES = 6  # per run, or fewer: at the start, the end, and evenly between


class WarpPictures(pl.Callback):
    """A picture (key `warps`) and statistics (`theta/…`) of the same images, at `PICTURES` steps.

    Runs without a spatial transformer log none.
    """

    def __init__(self, wandb_run) -> None:
        self.wandb_run = wandb_run

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if module.steps_done == 0:
            self._log(trainer, module)

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_) -> None:
        chunks = len(module.train_dataloader())
        chunk = -(-module.steps_done * chunks // module.recipe.steps)
        if chunk in {round(chunks * i / (PICTURES - 1)) for i in range(1, PICTURES)}:
            self._log(trainer, module)

    def _log(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        look = looked_at(module)
        if look is None:
            return
        statistics = {f"theta/{name}": value for name, value in look.statistics.items()}
        self.wandb_run.log_metrics(statistics, step=module.steps_done)
        with tempfile.TemporaryDirectory() as folder:
            picture = look.draw(Path(folder) / "warps.png", f"step {module.steps_done}")
            self.wandb_run.log({"warps": [wandb.Image(str(picture))], "trainer/global_step": module.steps_done})
