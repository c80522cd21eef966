"""How much arithmetic a run is, from its settings alone: to order runs and to estimate the time that remains."""

import math

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from stn.families import network, recipe
from stn.nets.frequency import FrequencyConv2d, pays, products
from stn.settings import Experiment

# What a step costs per pixel or voxel besides the network's products (distortion, sampling, Python), in FLOP.
OVERHEAD_FLOP_PER_PIXEL = 2500


def run_cost(experiment: Experiment, on_cpu: bool = True) -> float:
    """FLOP of the whole training of a run, forward and backward (three times the forward pass), roughly.

    A convolution that a CPU computes in the frequency domain counts as the direct one that takes as long there.
    """
    batch = experiment.recipe["batch_size"]
    net, _, in_shape = network(experiment)
    net.eval()
    image = torch.zeros(1, *in_shape)
    saved: list[float] = []
    with torch.no_grad():
        net(image)  # what is computed once and kept, like a spline's basis, is not part of a step
        for layer in net.modules():
            if on_cpu and isinstance(layer, FrequencyConv2d):
                layer.register_forward_hook(lambda *call: saved.append(_saved_flop(*call, batch)))
        with FlopCounterMode(display=False) as counter:
            net(image)
    flop = counter.get_total_flops() - sum(saved)
    step = batch * (3 * flop + OVERHEAD_FLOP_PER_PIXEL * math.prod(in_shape[1:])) + recipe(experiment).update_flop(net)
    return experiment.recipe["steps"] * step


def _saved_flop(layer: nn.Conv2d, inputs: tuple[torch.Tensor], output: torch.Tensor, batch: int) -> float:
    """FLOP per image that the frequency domain saves a layer in a batch of so many images."""
    image, weight = (batch, *inputs[0].shape[1:]), tuple(layer.weight.shape)
    direct = output.numel() * layer.weight[0].numel()
    return max(0.0, 2 * (direct - products(image, weight) / batch)) if pays(image, weight) else 0.0
