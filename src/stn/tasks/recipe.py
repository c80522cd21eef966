"""Every number of how a run is trained (conf/protocol/*.yaml says where each comes from)."""

from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR, OneCycleLR, StepLR
from torch.utils.flop_counter import FlopCounterMode

from stn.tasks.muon import Muon, orthogonal
from stn.validation import Checked

Padding = Literal["zeros", "border"]  # what a spatial transformer reads outside the image
Share = Annotated[float, Field(ge=0, le=1)]


class Sgd(Checked):
    name: Literal["sgd"]
    lr: NonNegativeFloat
    momentum: NonNegativeFloat
    nesterov: bool
    weight_decay: NonNegativeFloat

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> "Sgd":
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov must be false where momentum is 0")
        return self

    def of(self, groups: list[dict], net: nn.Module) -> Optimizer:
        options = {"momentum": self.momentum, "nesterov": self.nesterov, "weight_decay": self.weight_decay}
        return torch.optim.SGD(groups, fused=True, **options)  # fused: one kernel for all parameters


class AdamW(Checked):
    name: Literal["adamw"]
    lr: NonNegativeFloat
    weight_decay: NonNegativeFloat

    def of(self, groups: list[dict], net: nn.Module) -> Optimizer:
        return torch.optim.AdamW(groups, weight_decay=self.weight_decay, fused=True)


class MuonAdamW(Checked):
    """Muon for the weights between a net's input and its outputs, AdamW for biases and the layers of the outputs."""

    name: Literal["muon"]
    lr: NonNegativeFloat
    weight_decay: NonNegativeFloat

    def of(self, groups: list[dict], net: nn.Module) -> Optimizer:
        inner, split = inner_weights(net), []
        for group in groups:
            for is_inner in (True, False):
                if params := [p for p in group["params"] if (p in inner) == is_inner]:
                    split.append(group | {"params": params, "orthogonal": is_inner})
        return Muon(split, weight_decay=self.weight_decay, fused=True)

    def flop(self, net: nn.Module) -> int:
        """Of the matrix products in one step."""
        with FlopCounterMode(display=False) as counter:
            for weight in inner_weights(net):
                orthogonal(weight.detach().flatten(1))
        return counter.get_total_flops()


class Step(Checked):
    """The rate times `factor` every `every` steps."""

    name: Literal["step"]
    every: PositiveInt
    factor: NonNegativeFloat

    def of(self, optimiser: Optimizer, steps: int) -> LRScheduler:
        return StepLR(optimiser, self.every, self.factor)


class Milestones(Checked):
    """The rate times `factor` after each of the steps `at`."""

    name: Literal["milestones"]
    at: list[PositiveInt]
    factor: NonNegativeFloat

    def of(self, optimiser: Optimizer, steps: int) -> LRScheduler:
        return MultiStepLR(optimiser, self.at, self.factor)


class OneCycle(Checked):
    """Warm-up to the rate in a share of the steps, then a cosine to 0."""

    name: Literal["one_cycle"]
    warmup_fraction: Share

    def of(self, optimiser: Optimizer, steps: int) -> LRScheduler:
        return OneCycleLR(
            optimiser,
            [group["lr"] for group in optimiser.param_groups],
            total_steps=steps + 1,  # one more: the schedule is stepped after the last step, too
            pct_start=self.warmup_fraction,
            cycle_momentum=False,
        )


class Recipe(Checked):
    """What all families of tasks share; a family adds its own settings to it."""

    batch_size: PositiveInt
    steps: PositiveInt
    optimiser: Annotated[Sgd | AdamW, Field(discriminator="name")]
    schedule: Annotated[Step | Milestones | OneCycle, Field(discriminator="name")]

    @model_validator(mode="after")
    def _warms_up(self) -> "Recipe":
        if isinstance(self.schedule, OneCycle) and self.schedule.warmup_fraction * (self.steps + 1) == 1:
            share = self.schedule.warmup_fraction
            raise ValueError(f"schedule.warmup_fraction {share} of {self.steps} steps is no whole step")
        return self

    def lr_of(self, part: Literal["localiser", "rest"]) -> float:
        return self.optimiser.lr

    def optimiser_of(self, net: nn.Module) -> tuple[Optimizer, LRScheduler]:
        """The optimiser and its schedule, stepped once per training step.

        The localisation nets and regression layers of spatial transformers are a group of their own.
        """
        groups = [{"params": params, "lr": self.lr_of(part)} for part, params in parts_of(net).items()]
        optimiser = self.optimiser.of(groups, net)
        return optimiser, self.schedule.of(optimiser, self.steps)

    def update_flop(self, net: nn.Module) -> int:
        """FLOP of the matrix products in one step of the optimiser."""
        return self.optimiser.flop(net) if isinstance(self.optimiser, MuonAdamW) else 0


class ClassificationRecipe(Recipe):
    """A net of which only a part says where to look."""

    localiser_lr_multiplier: NonNegativeFloat

    def lr_of(self, part: Literal["localiser", "rest"]) -> float:
        return self.optimiser.lr * (self.localiser_lr_multiplier if part == "localiser" else 1)


def parts_of(net: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The parameters of the parts "rest" and "localiser" that a network has."""
    parts: dict[str, list[nn.Parameter]] = {"rest": [], "localiser": []}
    for name, parameter in net.named_parameters():
        parts["localiser" if is_localiser(name) else "rest"].append(parameter)
    return {part: params for part, params in parts.items() if params}


def inner_weights(net: nn.Module) -> set[nn.Parameter]:
    """The weights of all layers but the last one and the regression layers of spatial transformers."""
    *_, last = (layer for layer in net.modules() if isinstance(layer, nn.Linear))
    named = net.named_parameters()
    return {w for name, w in named if w.ndim > 1 and w is not last.weight and "regression" not in name.split(".")}


def is_localiser(name: str) -> bool:
    """Whether a parameter of this name decides where a spatial transformer looks."""
    return not {"localisation", "regression"}.isdisjoint(name.split("."))
