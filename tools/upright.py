"""Why an ST leaves digits turned (docs/upright.md): python -m tools.upright model=st_fcn_affine [told=1500] [...]

Trains as experiments.train would on mnist_r and prints, at a few steps, the error and how upright the ST leaves 10 000
test digits; at the end also by angle, by class, and what else theta does. With `told`, the localisation net is first
trained alone, for so many steps, to undo the rotation; with `picture`, some digits before and after the ST are drawn
there. Any override of experiments.train may follow. Writes no record.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from experiments.config import compose_run
from experiments.galleries.upright import before_and_after
from stn.families import build
from stn.results.sheets import Layout, write_sheet
from stn.tasks.classification import is_wrong
from stn.tasks.warp_statistics import Pose, deviations_deg, robust_spread_deg, rotation_kept, spread_deg

LOOKS = 12  # the closer together, the earlier
START = 1000  # images of a test batch
BIN_DEG = 10  # of the last table
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
            seen = look(module)
            print(f"| {module.steps_done} {seen.row()}", flush=True)
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
    print(f"\n{seen.by_angle()}\n\n{seen.by_class()}\n\n{seen.theta()}")
    if own["picture"]:
        inputs, outputs = before_and_after(module)
        labels = Layout(("input", f"output\n{spread_deg(seen.after_deg, seen.labels):.0f}°"))
        title = f"{' '.join(overrides)} told={own['told']}: {seen.error_pct:.2f} % error"
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


class Seen(NamedTuple):
    """Of N test digits: their angles before and after the ST, labels, which are misread, theta's linear part."""

    before_deg: Tensor  # (N,)
    after_deg: Tensor  # (N,)
    labels: Tensor  # (N,)
    wrong: Tensor  # (N,)
    linear: Tensor  # (N, 2, 2)

    @property
    def error_pct(self) -> float:
        return 100 * self.wrong.float().mean().item()

    def row(self) -> str:
        spreads = (spread_deg(self.after_deg, self.labels), robust_spread_deg(self.after_deg, self.labels))
        kept = rotation_kept(self.before_deg, self.after_deg, self.labels)
        return f"| {self.error_pct:.2f} | {spreads[0]:.1f} | {spreads[1]:.1f} | {kept:.2f} |"

    def by_angle(self) -> str:
        """How many of the digits that are left at an angle are misread; the last row: all beyond a right angle."""
        lines = ["| left, ° | digits, % | error, % |", "|---|---|---|"]
        left = deviations_deg(self.after_deg, self.labels).abs().div(BIN_DEG).floor().clamp(max=90 // BIN_DEG)
        for i in range(90 // BIN_DEG + 1):
            wrong = self.wrong[left == i].float()
            share = 100 * len(wrong) / len(left)
            error = f"{100 * wrong.mean():.1f}" if len(wrong) else "–"
            to = (i + 1) * BIN_DEG if i < 90 // BIN_DEG else 180
            lines.append(f"| {i * BIN_DEG} to {to} | {share:.1f} | {error} |")
        return "\n".join(lines)

    def by_class(self) -> str:
        lines = ["| class | rotation kept |", "|---|---|"]
        for k in self.labels.unique().tolist():
            angles = (angles[self.labels == k] for angles in (self.before_deg, self.after_deg, self.labels))
            lines.append(f"| {k} | {rotation_kept(*angles):.2f} |")
        return "\n".join(lines)

    def theta(self) -> str:
        larger, smaller = torch.linalg.svdvals(self.linear).unbind(1)
        mirrored = 100 * (torch.linalg.det(self.linear) < 0).float().mean()
        ratio, scale = (larger / smaller).median(), (larger * smaller).sqrt().median()
        return f"theta: mirrors {mirrored:.1f} %; its two scales' ratio {ratio:.2f}, their mean {scale:.2f} (medians)"


@torch.no_grad()
def look(module) -> Seen:
    """At the first draw of the test."""
    parts = []
    for start in range(0, module.n_test, START):
        batch = module.stream.test_batch(0, start)
        logits, (warped,) = module.net.observe(batch.images)
        digit_from_image, theta = batch.src_from_out[:, 0], warped.theta.view(-1, 2, 3)[..., :2]
        digit_from_output = torch.cat([digit_from_image[..., :2] @ theta, digit_from_image[..., 2:]], dim=2)
        angles = (Pose.of(digit_from_image).angle_deg, Pose.of(digit_from_output).angle_deg)
        parts.append((*angles, batch.labels, is_wrong(logits, batch.labels), theta))
    return Seen(*(torch.cat(part) for part in zip(*parts, strict=True)))


if __name__ == "__main__":
    upright(sys.argv[1:])
