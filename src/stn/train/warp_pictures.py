"""Logs to W&B what the spatial transformer sees, where it looks and what it passes on, at a few fixed steps."""

import tempfile
from pathlib import Path

import pytorch_lightning as pl
import torch

from stn.results.figures import Warp, warp_gallery
from stn.tasks.warp_statistics import WarpStatistics

PICTURES = 6  # per run: at the start, the end, and evenly between
EXAMPLES = 6  # test digits per picture


class WarpPictures(pl.Callback):
    """A picture and theta statistics of the same test digits, at `PICTURES` steps. Models without an ST log none."""

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if module.steps_done == 0:
            self._log(trainer, module)

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_) -> None:
        chunks = len(module.train_dataloader())
        chunk = -(-module.steps_done * chunks // module.recipe.steps)
        every = max(1, chunks // (PICTURES - 1))
        if chunk % every == 0 or chunk == chunks:
            self._log(trainer, module)

    @torch.no_grad()
    def _log(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if not hasattr(module.net, "transformers"):
            return
        batch = module.stream.test_batch(draw=0, start=0)
        images, labels = batch.images, batch.labels
        warps = module.net.transformers.warps(images)
        statistics = WarpStatistics()
        statistics.add(warps, batch)
        metrics = {f"theta/{name}": value for name, value in statistics.summary().items()}
        trainer.logger.log_metrics(metrics, step=module.steps_done)
        rows = [
            Warp(images[i, c].cpu().numpy(), w.grid[i].cpu().numpy(), w.image[i, c].cpu().numpy(), str(label))
            for i, label in enumerate(labels[:EXAMPLES].tolist())
            for w in warps
            for c in range(images.shape[1])
        ]
        with tempfile.TemporaryDirectory() as folder:
            picture = warp_gallery(Path(folder) / "warps.png", rows, f"step {module.steps_done}")
            trainer.logger.log_image("warps", [str(picture)], step=module.steps_done)
