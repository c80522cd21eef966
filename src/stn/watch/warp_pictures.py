"""Logs to W&B what the spatial transformers see, where they look and what they pass on, at a few fixed steps."""

import tempfile
from pathlib import Path

import pytorch_lightning as pl

from stn.watch.looks import draw, look

PICTURES = 6  # per run: at the start, the end, and evenly between


class WarpPictures(pl.Callback):
    """A picture (key `warps`) and statistics (`theta/…`) of the same images, at `PICTURES` steps.

    Runs without a spatial transformer log none.
    """

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if module.steps_done == 0:
            self._log(trainer, module)

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_) -> None:
        chunks = len(module.train_dataloader())
        chunk = -(-module.steps_done * chunks // module.recipe.steps)
        every = max(1, chunks // (PICTURES - 1))
        if chunk % every == 0 or chunk == chunks:
            self._log(trainer, module)

    def _log(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        found = look(module)
        if found is None:
            return
        statistics = {f"theta/{name}": value for name, value in found.statistics.items()}
        trainer.logger.log_metrics(statistics, step=module.steps_done)
        with tempfile.TemporaryDirectory() as folder:
            picture = draw(Path(folder) / "warps.png", found, f"step {module.steps_done}")
            trainer.logger.log_image("warps", [str(picture)], step=module.steps_done)
