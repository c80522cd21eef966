"""Logs to W&B how a run trains and how it ends: rates, gradient norms, throughput, confusion matrix, status."""

import pytorch_lightning as pl
import torch
import wandb
from torch import Tensor

from stn.nets.budget import count_parameters
from stn.tasks.recipe import parts_of

MAX_CHART_CLASSES = 50  # of a confusion matrix as a W&B chart, which has a row per cell; larger ones are a picture


class Telemetry(pl.Callback):
    """Once per chunk, beside the losses: `optim/…` of the parts "localiser" and "rest", and `train/images_per_s`.

    Gradient norms are those of the chunk's last step, whose gradients are still there.
    """

    def __init__(self, wandb_run) -> None:
        """`wandb_run`: a `stn.watch.tracking.WandbRun`."""
        self.wandb_run = wandb_run
        self.predicted, self.labels = [], []

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.wandb_run.log_hyperparams({"n_params": count_parameters(module.net)})
        self.parts = parts_of(module.net)
        self.steps, self.seconds = module.steps_done, module.train_s
        if module.steps_done:  # resumed: the row of the chunk that a checkpoint ended is written by nobody else
            last = {name: values[-1] for name, values in module.curve.items() if name != "step"}
            self.wandb_run.log_metrics(last, step=module.steps_done)

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_) -> None:
        groups = module.optimizers(use_pl_optimizer=False).param_groups
        lr_of = {parameter: group["lr"] for group in groups for parameter in group["params"]}
        for part, parameters in self.parts.items():
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients).item()
            module.log_dict({f"optim/lr_{part}": lr_of[parameters[0]], f"optim/grad_norm_{part}": norm})
        images = (module.steps_done - self.steps) * module.recipe.batch_size
        module.log("train/images_per_s", images / (module.train_s - self.seconds))
        self.steps, self.seconds = module.steps_done, module.train_s

    def on_test_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs, *_) -> None:
        if outputs and outputs["labels"].ndim == 1:
            self.predicted.append(outputs["logits"].argmax(1).cpu())
            self.labels.append(outputs["labels"].cpu())

    def on_test_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self.labels:
            labels, predicted = torch.cat(self.labels), torch.cat(self.predicted)
            logged = confusion(labels, predicted, module.stream.classes)
            self.wandb_run.log({**logged, "trainer/global_step": module.steps_done})


def confusion(labels: Tensor, predicted: Tensor, classes: int) -> dict:
    """`confusion_matrix`, a W&B chart, or `confusion_picture` of many classes: a row per true class, shares from white
    to black.
    """
    if classes <= MAX_CHART_CLASSES:
        names = [str(k) for k in range(classes)]
        chart = wandb.plot.confusion_matrix(y_true=labels.tolist(), preds=predicted.tolist(), class_names=names)
        return {"confusion_matrix": chart}
    counts = torch.bincount(labels * classes + predicted, minlength=classes**2).view(classes, classes)
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    return {"confusion_picture": wandb.Image((255 * (1 - shares)).byte().numpy())}
