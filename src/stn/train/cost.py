"""How much arithmetic a run is, from its settings alone: to order runs and to estimate the time that remains."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from stn.data.distortions import distortion
from stn.data.streams import stream_class
from stn.nets.mnist import Architecture, build_within_budget

# What a step costs per image besides the network's products (distortion, sampling, Python), as so many FLOP.
OVERHEAD_FLOP = 2e6


def run_cost(settings: dict) -> float:
    """FLOP of the whole training of a run, forward and backward (three times the forward pass), roughly."""
    task, recipe = settings["task"], settings["recipe"]
    architecture = Architecture(**{name: value for name, value in settings["model"].items() if name != "name"})
    stream = stream_class(task)
    in_shape = (stream.channels, *distortion(**task["distortion"]).canvas)
    net, _ = build_within_budget(architecture, in_shape, stream.classes, task["st_output_pool"], recipe["filters"])
    image = torch.zeros(1, *in_shape)
    with torch.no_grad():
        net(image)  # what is computed once and kept, like a spline's basis, is not part of a step
        with FlopCounterMode(display=False) as counter:
            net(image)
    return recipe["steps"] * recipe["batch_size"] * (3 * counter.get_total_flops() + OVERHEAD_FLOP)
