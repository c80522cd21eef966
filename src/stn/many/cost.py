"""How much arithmetic a run is, from its settings alone: to order runs and to estimate the time that remains."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from stn.families import network
from stn.settings import Experiment

# What a step costs per image besides the network's products (distortion, sampling, Python), as so many FLOP.
OVERHEAD_FLOP = 2e6


def run_cost(experiment: Experiment) -> float:
    """FLOP of the whole training of a run, forward and backward (three times the forward pass), roughly."""
    recipe = experiment.recipe
    net, _, in_shape = network(experiment)
    net.eval()
    image = torch.zeros(1, *in_shape)
    with torch.no_grad():
        net(image)  # what is computed once and kept, like a spline's basis, is not part of a step
        with FlopCounterMode(display=False) as counter:
            net(image)
    return recipe["steps"] * recipe["batch_size"] * (3 * counter.get_total_flops() + OVERHEAD_FLOP)
