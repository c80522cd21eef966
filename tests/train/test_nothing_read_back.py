"""A training step never waits for the device: checked without one, on tensors that have shapes and no numbers."""

import copy
import traceback

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeCopyMode, FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from stn.families import build
from stn.tasks.classification import Classification
from stn.transform import constants

TASKS = ["mnist_r", "mnist_rts", "mnist_p", "mnist_e", "mnist_tc", "addition"]
MODELS = ["st_fcn_affine", "st_fcn_tps", "st_cnn_projective"]


class CopiesBetweenDevices(TorchDispatchMode):
    """Notes the lines of the suite that copy a tensor from one device to another."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        places = {x.device.type for x in (*args, out) if isinstance(x, Tensor)}
        if len(places) > 1 and "copy" in str(func):
            own = [f for f in traceback.extract_stack() if "/src/stn/" in f.filename]
            self.lines.add(f"{own[-1].filename.rpartition('/')[2]}: {own[-1].line}")
        return out


@pytest.fixture
def kept_as_if_real(monkeypatch):
    """Constants are kept between calls, as on a device that exists; of fake tensors the library keeps none."""
    constants.forget()
    monkeypatch.setattr(constants, "PLAIN", (*constants.PLAIN, FakeTensor))
    yield
    constants.forget()


@pytest.fixture
def fake(toy_mnist, settings_of, kept_as_if_real):
    """Call it with a task, a model and a device that need not exist: a run's module whose tensors are fake.

    Used under `module.mode`. The generator stays on the CPU: no other exists without its device.
    """

    def make(task: str, model: str, device: str) -> Classification:
        module = build(settings_of(task, model, steps=5, batch_size=4)).module
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        with FakeCopyMode(mode):
            module = copy.deepcopy(module)
        with mode:
            put(module, device)
            module.stream.to(module.device)
            module.generator = torch.Generator()
        module.mode = mode
        return module

    return make


def put(module, device: str) -> None:
    """`module.to(device)`, which fake tensors do not bear."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(torch.empty_like(parameter, device=device))
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty_like(buffer, device=device)
    module._device = torch.device(device, 0) if device != "cpu" else torch.device("cpu")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("task", TASKS)
def test_a_step_reads_no_number_back(fake, task, model):
    module = fake(task, model, "cpu")
    with module.mode:
        (optimiser,), _ = module.configure_optimizers()
        loss, _ = module.batch_loss()
        module.update(optimiser, loss)
        assert loss.shape == ()
        with pytest.raises(DataDependentOutputException):  # as whatever reads one would
            loss.item()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("task", TASKS)
def test_nothing_but_a_cpu_generators_numbers_goes_to_the_gpu(fake, task, model):
    """Up to the loss: the backward pass wants a device that exists."""
    module = fake(task, model, "cuda")
    with module.mode:
        module.batch_loss()  # the first step keeps what all others use
        with CopiesBetweenDevices() as copies:
            assert module.batch_loss()[0].device.type == "cuda"
    assert copies.lines, "the generator's numbers come from the CPU here"
    assert all(line.startswith("digit.py") for line in copies.lines), copies.lines
