"""A tracer leaves nothing behind: each time in a process where nothing was kept before it."""

import os
import subprocess
import sys
import traceback

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from stn.transform import TRANSFORMATIONS, SpatialTransformer, affine_grid, constants, tps_grid


class Features(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(36, 4), nn.Tanh())
        self.out_features = 4


def under_fake_tensors(module, image, theta, grid):
    with FakeTensorMode(allow_non_fake_inputs=True):
        module(torch.empty(3, 1, 6, 6))
        module(image)


def under_make_fx(module, image, theta, grid):
    for mode in ("fake", "symbolic", "real"):
        make_fx(grid, tracing_mode=mode)(theta)


def under_torch_func(module, image, theta, grid):
    torch.func.jacrev(grid)(theta)
    torch.func.vmap(torch.func.grad(lambda t: grid(t[None]).sum()))(theta)
    torch.export.export(module, (image,))


def under_inference_mode(module, image, theta, grid):
    with torch.inference_mode():
        module(image)


TRACERS = {
    "export": lambda module, image, theta, grid: torch.export.export(module, (image,)),
    "fake tensors": under_fake_tensors,
    "make_fx": under_make_fx,
    "compile": lambda module, image, theta, grid: torch.compile(module, backend="aot_eager")(image),
    "jit.trace": lambda module, image, theta, grid: torch.jit.trace(module, image),
    "torch.func": under_torch_func,
    "inference mode": under_inference_mode,
    "meta": lambda module, image, theta, grid: grid(theta.to("meta")),
}


def trace_then_train(name, tracer):
    torch.manual_seed(0)
    transformation = TRANSFORMATIONS[name]
    module, image = SpatialTransformer(Features(), name), torch.rand(3, 1, 6, 6)
    theta = torch.tensor(transformation.identity).expand(3, *transformation.shape).clone()
    assert not constants._kept
    TRACERS[tracer](module, image, theta, lambda t: transformation.grid(t, (6, 6)))
    for trained in (module, SpatialTransformer(Features(), name)):
        assert type(trained(image)) is torch.Tensor
        torch.testing.assert_close(trained(image), image, rtol=0, atol=1e-5)
        before = [p.detach().clone() for p in trained.parameters()]
        optimiser = torch.optim.SGD(trained.parameters(), lr=0.1)
        for _ in range(2):  # the first step moves the regression alone
            optimiser.zero_grad()
            (trained(image) - image.flip(-1)).square().mean().backward()
            optimiser.step()
        assert all((p != q).any() for p, q in zip(trained.parameters(), before, strict=True)), "nothing was trained"


def in_processes_of_their_own() -> None:
    """Forked from one that has imported torch and done nothing with it: an import takes longer than the rest."""
    torch.set_num_threads(1)
    for name in ("affine", "tps"):
        for tracer in TRACERS:
            if (child := os.fork()) == 0:
                status = 1
                try:
                    trace_then_train(name, tracer)
                    status = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stderr.flush()
                    os._exit(status)
            print(name, tracer, os.waitpid(child, 0)[1], sep=",", flush=True)


@pytest.mark.skipif(torch.__version__ < (2, 11), reason="torch 2.4 cannot export, nor jacrev, a sampler")
def test_after_tracing_first_of_all_a_module_computes_and_trains():
    command = [sys.executable, "-W", "ignore", __file__]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    lines = [f"{name},{tracer},0" for name in ("affine", "tps") for tracer in TRACERS]
    assert done.stdout.split("\n") == [*lines, ""], done.stderr


def kept():
    return list(constants._kept.values())


def test_constants_are_kept_up_to_a_limit_the_last_used_ones():
    constants.forget()
    theta = torch.eye(2, 3)[None]
    sizes = [(n, n + 1) for n in range(200, 300)]  # 0.5 to 1 MB each
    for size in sizes:
        affine_grid(theta, sizes[0])
        affine_grid(theta, size)
        assert sum(tensor.nbytes for tensor in kept()) <= constants.LIMIT_BYTES
    there = {key[1] for key in constants._kept}
    assert {sizes[0], sizes[-1]} <= there
    assert sizes[1] not in there
    constants.forget()


def test_a_constant_larger_than_the_limit_is_used_and_not_kept(monkeypatch):
    constants.forget()
    theta = torch.tensor(TRANSFORMATIONS["tps"].identity)[None]
    wanted = tps_grid(theta, (8, 8))
    constants.forget()
    monkeypatch.setattr(constants, "LIMIT_BYTES", 100)
    assert torch.equal(tps_grid(theta, (8, 8)), wanted)
    assert not kept()


@pytest.mark.parametrize("name", ["affine", "tps"])
def test_the_second_call_makes_nothing_anew(name):
    constants.forget()
    theta = torch.tensor(TRANSFORMATIONS[name].identity)[None]
    TRANSFORMATIONS[name].grid(theta, (6, 6))
    first = kept()
    TRANSFORMATIONS[name].grid(theta, (6, 6))
    assert {id(t) for t in kept()} == {id(t) for t in first}
    assert first


if __name__ == "__main__":
    in_processes_of_their_own()
