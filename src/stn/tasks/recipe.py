"""Every number of how a run is trained (conf/protocol/*.yaml says where each comes from)."""

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR, OneCycleLR, StepLR

SCHEDULES = ("step", "milestones", "one_cycle")
OPTIMISERS = ("sgd", "adamw")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What all families of tasks share; a family adds its own settings to it.

    `lr_step_every` belongs to the schedule "step", `lr_milestones` (steps) to "milestones"; both multiply the rate by
    `lr_step_factor`. `warmup_fraction` belongs to "one_cycle", whose peak is `lr`.
    Raises: ValueError, one line, for a setting of the wrong type or out of its range.
    """

    batch_size: int
    steps: int
    optimiser: str
    lr: float
    momentum: float
    nesterov: bool
    weight_decay: float
    schedule: str
    lr_step_every: int
    lr_step_factor: float
    warmup_fraction: float
    localiser_lr_multiplier: float
    test_draws: int
    lr_milestones: list = field(default_factory=list)

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            value, kind = getattr(self, entry.name), entry.type
            if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool) != (
                kind is bool
            ):
                allowed = getattr(kind, "__name__", kind)  # a union like `str | None` has none before Python 3.14
                raise ValueError(f"recipe.{entry.name} must be of type {allowed}, got {value!r}")
        self.must_be_one_of("optimiser", OPTIMISERS)
        self.must_be_one_of("schedule", SCHEDULES)
        for name in ("batch_size", "steps", "test_draws", "lr_step_every"):
            self.must_be_at_least(1, name)
        for name in ("lr", "momentum", "weight_decay", "lr_step_factor", "localiser_lr_multiplier"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"recipe.{name} must be 0 or more, got {getattr(self, name)}")
        if not 0 <= self.warmup_fraction <= 1:
            raise ValueError(f"recipe.warmup_fraction must be 0 to 1, got {self.warmup_fraction}")
        if self.schedule == "one_cycle" and self.warmup_fraction * (self.steps + 1) == 1:
            raise ValueError(f"recipe.warmup_fraction {self.warmup_fraction} of {self.steps} steps is no whole step")
        if self.nesterov and self.momentum == 0:
            raise ValueError("recipe.nesterov must be false where recipe.momentum is 0")

    def must_be_one_of(self, name: str, allowed: Iterable[str]) -> None:
        if getattr(self, name) not in allowed:
            raise ValueError(f"recipe.{name} must be one of {tuple(allowed)}, got {getattr(self, name)!r}")

    def must_be_at_least(self, least: float, name: str) -> None:
        if not least <= getattr(self, name) < math.inf:
            raise ValueError(f"recipe.{name} must be at least {least}, got {getattr(self, name)}")

    def must_be_a_fraction(self, name: str) -> None:
        if not 0 < getattr(self, name) <= 1:
            raise ValueError(f"recipe.{name} must be more than 0 and at most 1, got {getattr(self, name)}")

    def optimiser_of(self, net: nn.Module) -> tuple[Optimizer, LRScheduler]:
        """The optimiser and its schedule, stepped once per training step.

        The localisation nets and regression layers of spatial transformers are a group of their own.
        """
        localiser, others = [], []
        for name, parameter in net.named_parameters():
            (localiser if is_localiser(name) else others).append(parameter)
        groups = [{"params": others, "lr": self.lr}] if others else []
        if localiser:
            groups.append({"params": localiser, "lr": self.lr * self.localiser_lr_multiplier})
        common = {"weight_decay": self.weight_decay, "fused": True}  # fused: one kernel for all parameters
        if self.optimiser == "sgd":
            optimiser = torch.optim.SGD(groups, momentum=self.momentum, nesterov=self.nesterov, **common)
        else:
            optimiser = torch.optim.AdamW(groups, **common)
        return optimiser, self._schedule_of(optimiser)

    def _schedule_of(self, optimiser: Optimizer) -> LRScheduler:
        if self.schedule == "step":
            return StepLR(optimiser, self.lr_step_every, self.lr_step_factor)
        if self.schedule == "milestones":
            return MultiStepLR(optimiser, self.lr_milestones, self.lr_step_factor)
        return OneCycleLR(
            optimiser,
            [group["lr"] for group in optimiser.param_groups],
            total_steps=self.steps + 1,  # one more: the schedule is stepped after the last step, too
            pct_start=self.warmup_fraction,
            cycle_momentum=False,
        )


def is_localiser(name: str) -> bool:
    """Whether a parameter of this name decides where a spatial transformer looks."""
    return not {"localisation", "regression"}.isdisjoint(name.split("."))
