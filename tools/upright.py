"""Why an ST leaves digits turned (docs/upright.md): python -m tools.upright model=st_fcn_affine [told=1500] [...]

Trains as experiments.train would on mnist_r and prints, at a few steps, the error and how upright the ST leaves 10 000
test digits. With `told`, the localisation net is first trained alone, for so many steps, to undo the rotation; with
`picture`, some digits before and after the ST are drawn there. Any override of experiments.train may follow. Writes no
record.
"""

import sys
from pathlib import Path

import torch

from experiments.config import compose_run
from experiments.galleries.upright import before_and_after
from stn.families import build
from stn.results.sheets import Layout, write_sheet
from stn.tasks.classification import is_wrong
from stn.tasks.warp_statistics import Pose, robust_spread_deg, rotation_kept, spread_deg

LOOKS = 12  # the closer together, the earlier
START = 1000  # images of a test batch
LR = 0.005  # of the localisation net that is told the rotation: the peak


def upright(arguments: list[str]) -> None:
    own = {"told": "0", "picture": ""}
    own |= {name: value for name, _, value in (arg.partition("=") for arg in arguments) if name in own}
    overrides = [argument for argument in arguments if argument.partition("=")[0] not in own]
    module = build(compose_run(["task=mnist_r", "protocol=fast", "seed=0", *overrides])).module
    torch.set_num_threads(1)
    module.setup("fit")
    if int(own["told"]):
        teach(module, int(own["told"]))
    (optimiser,), (schedule,) = module.configure_optimizers()
    steps, chunk = module.recipe.steps, module.chunk_steps
    looks = {round(steps * (i / (LOOKS - 1)) ** 2 / chunk) * chunk for i in range(LOOKS)} | {steps}
    print("| step | error, % | spread, ° | of most, ° | rotation kept |\n|---|---|---|---|---|")
    while True:
        if module.steps_done in looks:
            error, spread, robust, kept = look(module)
            print(f"| {module.steps_done} | {error:.2f} | {spread:.1f} | {robust:.1f} | {kept:.2f} |", flush=True)
        if module.steps_done >= steps:
            break
        losses, outcomes = [], []
        for _ in range(module.begin_chunk()):
            loss, outcome = module.batch_loss()
            step(optimiser, loss)
            schedule.step()
            losses.append(loss.detach())
            outcomes.append(outcome)
        module.end_chunk(torch.stack(losses), outcomes)
    if own["picture"]:
        inputs, outputs = before_and_after(module)
        labels = Layout(("input", f"output\n{spread:.0f}°"))
        title = f"{' '.join(overrides)} told={own['told']}: {error:.2f} % error"
        write_sheet(Path(own["picture"]), [inputs, outputs], title, labels)


def teach(module, steps: int) -> None:
    """Trains the localisation net alone: what is left of the rotation, as a matrix, shall be the identity."""
    (transformer,) = module.net.transformers
    optimiser = torch.optim.AdamW(transformer.parameters(), LR, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LR, total_steps=steps + 1)
    module.generator.manual_seed(module.seed)
    for _ in range(steps):
        batch = module.draw_batch()
        left = batch.src_from_out[:, 0, :, :2] @ transformer.theta(batch.images).view(-1, 2, 3)[..., :2]
        step(optimiser, (left - torch.eye(2)).square().sum((1, 2)).mean())
        schedule.step()


def step(optimiser: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


@torch.no_grad()
def look(module) -> tuple[float, ...]:
    """Error in percent, spreads in degrees and share of rotation kept, of the first draw of the test."""
    before, after, labels, wrong = [], [], [], []
    for start in range(0, module.n_test, START):
        batch = module.stream.test_batch(0, start)
        logits, (warped,) = module.net.observe(batch.images)
        digit_from_image = batch.src_from_out[:, 0]
        before.append(Pose.of(digit_from_image).angle_deg)
        linear = digit_from_image[..., :2] @ warped.theta.view(-1, 2, 3)[..., :2]
        after.append(Pose.of(torch.cat([linear, digit_from_image[..., 2:]], dim=2)).angle_deg)
        labels.append(batch.labels)
        wrong.append(is_wrong(logits, batch.labels))
    before, after, labels = torch.cat(before), torch.cat(after), torch.cat(labels)
    error = 100 * torch.cat(wrong).float().mean().item()
    return error, spread_deg(after, labels), robust_spread_deg(after, labels), rotation_kept(before, after, labels)


if __name__ == "__main__":
    upright(sys.argv[1:])
