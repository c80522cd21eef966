"""Each transformation × each way in which modules are used: the table of docs/transform.md, cell by cell."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import gradgradcheck

from stn.transform import TRANSFORMATIONS, SpatialTransformer, sample

NAMES = tuple(TRANSFORMATIONS)
F64 = torch.float64
DOCS = Path(__file__).parents[2] / "docs" / "transform.md"
MARK = "✓"


class Features(nn.Sequential):
    def __init__(self, shape, out_features=5):
        super().__init__(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), out_features), nn.Tanh())
        self.out_features = out_features


def transformer(name):
    """One that warps, and differently each image."""
    torch.manual_seed(0)
    module = SpatialTransformer(Features(shape(name)), name)
    nn.init.normal_(module.regression.weight, std=0.1)
    return module


def shape(name):
    return (2, 3, 4, 5) if name == "affine3d" else (2, 6, 5)


def images(name, n=3, seed=1):
    return torch.rand(n, *shape(name), generator=torch.Generator().manual_seed(seed))


def grid(name, theta):
    return TRANSFORMATIONS[name].grid(theta, shape(name)[1:])


def assert_same(got, wanted):
    torch.testing.assert_close(got, wanted, rtol=0, atol=2e-6)


def gradients(module, image, forward):
    return torch.autograd.grad(forward(image).square().sum(), tuple(module.parameters()))


def assert_trains_alike(module, image, forward):
    assert_same(forward(image), module(image))
    for got, wanted in zip(gradients(module, image, forward), gradients(module, image, module), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def compiled(name):
    """Without a break in the graph, and again with another batch, of a size that is not compiled in."""
    torch._dynamo.reset()
    module = transformer(name)
    forward = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert_trains_alike(module, images(name), forward)
    assert_same(forward(images(name, 5)), module(images(name, 5)))


def exported(name):
    module, batch = transformer(name), torch.export.Dim("batch")
    program = torch.export.export(module, (images(name),), dynamic_shapes=({0: batch},)).module()
    assert_same(program(images(name, 7)), module(images(name, 7)))


def as_onnx(name, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    module, path = transformer(name).eval(), tmp_path / "transformer.onnx"
    shapes = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(module, (images(name),), dynamo=True, dynamic_shapes=shapes, verbose=False).save(path)
    session = onnxruntime.InferenceSession(path)
    for n in (3, 7):
        (out,) = session.run(None, {session.get_inputs()[0].name: images(name, n).numpy()})
        np.testing.assert_allclose(out, module(images(name, n)).detach().numpy(), rtol=0, atol=1e-5)


def traced(name):
    module = transformer(name)
    program = torch.jit.trace(module, images(name))
    assert_same(program(images(name, 7)), module(images(name, 7)))


def vmapped(name):
    image, theta = torch.stack([images(name), images(name, seed=2)]), transformer(name).theta(images(name)).detach()
    together = torch.vmap(lambda x: sample(x, grid(name, theta)))(image)
    assert_same(together, torch.stack([sample(x, grid(name, theta)) for x in image]))


def jacobian(name):
    image, theta = images(name, 2), transformer(name).theta(images(name, 2)).detach()

    def warp(theta):
        return sample(image, grid(name, theta))

    wanted = torch.autograd.functional.jacobian(warp, theta)
    torch.testing.assert_close(torch.func.jacrev(warp)(theta), wanted, rtol=1e-4, atol=1e-4)
    of_grid = [jacobian(lambda theta: grid(name, theta))(theta) for jacobian in (torch.func.jacfwd, torch.func.jacrev)]
    torch.testing.assert_close(*of_grid)


def twice_differentiated(name):
    image = images(name, 1).double().requires_grad_()
    theta = transformer(name).double().theta(image).detach().requires_grad_()
    out_size = (2, 2, 2) if name == "affine3d" else (2, 3)

    def warp(image, theta):
        return sample(image, TRANSFORMATIONS[name].grid(theta, out_size))

    assert gradgradcheck(warp, (image, theta))


def deterministic(name):
    module = transformer(name)
    wanted = gradients(module, images(name), module)
    torch.use_deterministic_algorithms(True)
    try:
        got = gradients(module, images(name), module)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(map(torch.equal, got, wanted))


def empty_batch(name):
    module, image = transformer(name), images(name, 0)
    assert module(image).shape == image.shape
    assert all((g == 0).all() for g in gradients(module, image, module))


def one_by_one(name):
    module = transformer(name)
    assert_same(torch.cat([module(image[None]) for image in images(name)]), module(images(name)))


def channels_last(name):
    module = transformer(name)
    layout = torch.channels_last_3d if name == "affine3d" else torch.channels_last
    assert_same(module(images(name).to(memory_format=layout)), module(images(name)))


def not_contiguous(name):
    module, image = transformer(name), images(name)
    turned = image.transpose(-1, -2).contiguous().transpose(-1, -2)
    assert not turned.is_contiguous()
    assert_same(module(turned), module(image))


def on_meta(name):
    module, image = transformer(name).to("meta"), images(name).to("meta")
    out = module(image)
    assert out.is_meta
    assert out.shape == image.shape


def of_type(dtype, atol):
    def converted(name):
        module, wanted = transformer(name), transformer(name)(images(name))
        out = module.to(dtype)(images(name).to(dtype))
        assert out.dtype == dtype
        assert (out - wanted).abs().mean() < atol
        following = nn.Linear(out.shape[-1], 1).to(dtype)
        following(out).sum().backward()
        assert module.regression.weight.grad.abs().sum() > 0

    return converted


USES = {
    "compile": compiled,
    "export": exported,
    "ONNX": as_onnx,
    "jit.trace": traced,
    "vmap": vmapped,
    "jacrev": jacobian,
    "double backward": twice_differentiated,
    "deterministic": deterministic,
    "empty batch": empty_batch,
    "one by one": one_by_one,
    "channels last": channels_last,
    "not contiguous": not_contiguous,
    "meta": on_meta,
    "bfloat16": of_type(torch.bfloat16, 0.03),
    "float16": of_type(torch.float16, 0.003),
    "float64": of_type(F64, 1e-6),
}

NOT_IN_OLD_TORCH = ("export", "ONNX", "jacrev", "double backward")


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning:torch._dynamo|torch._inductor|torch.onnx|torch.export|onnxscript")
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("name", NAMES)
def test_use(name, use, tmp_path):
    if use in NOT_IN_OLD_TORCH and torch.__version__ < (2, 11):
        pytest.skip("torch 2.4 cannot; versions between were not tried")
    arguments = (name, tmp_path) if use == "ONNX" else (name,)
    USES[use](*arguments)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_what_the_default_compiler_makes_trains_as_what_it_was_made_of():
    """The spline, alone: a compiler of C++ takes its time, and the table's rows have been through all before it."""
    torch._dynamo.reset()
    module = transformer("tps")
    assert_trains_alike(module, images("tps"), torch.compile(module, fullgraph=True))


def test_the_table_in_the_docs_is_the_table_of_tests():
    rows = [
        [cell.strip() for cell in line.strip("|\n").split("|")]
        for line in DOCS.read_text().splitlines()
        if line.startswith("|") and not re.match(r"\|[-:| ]+$", line)
    ]
    start = next(i for i, row in enumerate(rows) if row[1:] == list(NAMES))
    cells = rows[start + 1 : start + 1 + len(USES)]
    assert [row[0] for row in cells] == list(USES)
    assert all(row[1:] == [MARK] * len(NAMES) for row in cells)
