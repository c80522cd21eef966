"""Two training steps by hand, for networks too large to be trained in a test."""

from pytorch_lightning import LightningModule


def train_two_steps(module: LightningModule) -> tuple[float, list[str]]:
    """The loss of the second step, and the weights to which it gave no gradient, of a LightningModule.

    Two, since regression layers begin at zero: the localisation nets before them learn from the second step on.
    """
    module.setup("fit")
    (optimiser,), _ = module.configure_optimizers()
    module.begin_chunk()
    for _ in range(2):
        loss, _ = module.batch_loss()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    weights = [(name, p) for name, p in module.net.named_parameters() if name.endswith("weight")]
    return loss.item(), [name for name, p in weights if p.grad is None or not p.grad.abs().sum() > 0]
