import copy
import re

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from stn.transform import (
    TRANSFORMATIONS,
    SpatialTransformer,
    Transformation,
    Warped,
    affine_grid,
    attention_grid,
    fixed_attention,
    regular_control_points,
    sample,
)

NAMES = tuple(TRANSFORMATIONS)


class Features(nn.Sequential):
    """A localisation net of one hidden layer."""

    def __init__(self, *in_shape, out_features=5):
        n = torch.Size(in_shape).numel()
        super().__init__(nn.Flatten(), nn.Linear(n, out_features), nn.ReLU())
        self.out_features = out_features


def shape_for(name):
    return (2, 4, 5, 6) if name == "affine3d" else (2, 9, 7)


def build(name, seed=0, shape=None, **settings):
    torch.manual_seed(seed)
    return SpatialTransformer(Features(*(shape or shape_for(name))), name, **settings)


def images(name, n=3, seed=1):
    return torch.rand(n, *shape_for(name), generator=torch.Generator().manual_seed(seed))


def train_one_step(transformer, image, lr=0.1):
    target = torch.rand(image.shape, generator=torch.Generator().manual_seed(7))
    optimiser = torch.optim.SGD(transformer.parameters(), lr=lr)
    (transformer(image) - target).square().mean().backward()
    optimiser.step()


@pytest.mark.parametrize("name", NAMES)
def test_training_starts_at_the_identity(name):
    transformer, image = build(name), images(name)
    torch.testing.assert_close(transformer(image), image, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_identity_start_is_as_exact_under_autocast(name):
    transformer, image = build(name), images(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = transformer(image)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, image, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_reaches_the_regression_at_once_and_the_localisation_net_after_one_step(name):
    transformer, image = build(name), images(name)
    train_one_step(transformer, image)
    assert transformer.regression.weight.grad.abs().sum() > 0
    assert transformer.regression.bias.grad.abs().sum() > 0
    transformer.zero_grad()
    train_one_step(transformer, image)
    assert all(p.grad.abs().sum() > 0 for p in transformer.localisation.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_theta_moves_with_a_training_step_and_differs_between_images(name):
    transformer, image = build(name), images(name)
    start = transformer.theta(image)
    assert start.shape == (3, *TRANSFORMATIONS[name].shape)
    assert (start == transformer.initial_theta.float()).all()
    train_one_step(transformer, image)
    moved = transformer.theta(image)
    assert (moved != start).any(dim=tuple(range(1, start.ndim))).all()
    assert not torch.equal(moved[0], moved[1])


def test_training_brings_a_shifted_picture_back():
    """The sign of the whole chain: descending the loss must find the shift and not run from it."""
    torch.manual_seed(0)
    axis = torch.linspace(-1, 1, 16)
    target = torch.exp(-4 * (axis[:, None] ** 2 + axis[None] ** 2))[None, None]
    shift = torch.tensor([[[1.0, 0.0, 0.25], [0.0, 1.0, -0.15]]])
    image = sample(target, affine_grid(shift, (16, 16)))
    transformer = SpatialTransformer(Features(1, 16, 16), "affine")
    optimiser = torch.optim.SGD(transformer.regression.parameters(), lr=2.0)
    for _ in range(200):
        optimiser.zero_grad()
        (transformer(image) - target).square().mean().backward()
        optimiser.step()
    offset = transformer.theta(image)[0, :, 2]
    torch.testing.assert_close(offset, torch.tensor([-0.25, 0.15]), rtol=0, atol=0.03)


def test_warp_returns_what_forward_returns_with_theta_and_grid():
    transformer, image = build("tps"), images("tps")
    train_one_step(transformer, image)
    warped = transformer.warp(image)
    assert isinstance(warped, Warped)
    assert torch.equal(warped.image, transformer(image))
    assert torch.equal(warped.theta, transformer.theta(image))
    assert torch.equal(warped.grid, TRANSFORMATIONS["tps"].grid(warped.theta, (9, 7)))


def test_a_given_theta_takes_the_place_of_the_predicted_one():
    transformer, image = build("affine"), images("affine")
    theta = torch.tensor([[0.5, 0.2, 0.1], [-0.3, 0.8, 0.0]]).repeat(3, 1, 1)
    warped = transformer.warp(image, theta)
    assert warped.theta is theta
    assert torch.equal(warped.image, sample(image, affine_grid(theta, (9, 7))))


@pytest.mark.parametrize("name", NAMES)
def test_every_channel_is_warped_alike(name):
    transformer, image = build(name), images(name)
    image[:, 1] = 2 * image[:, 0]
    train_one_step(transformer, image)
    out = transformer(image)
    torch.testing.assert_close(out[:, 1], 2 * out[:, 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_output_size_may_differ_from_the_input_size(name):
    out_size = (3, 2, 8) if name == "affine3d" else (4, 11)
    transformer, image = build(name, out_size=list(out_size)), images(name)
    warped = transformer.warp(image)
    assert warped.image.shape == (3, 2, *out_size)
    assert warped.grid.shape == (3, *out_size, len(out_size))


def test_without_an_output_size_each_input_keeps_its_own():
    class Constant(nn.Module):
        out_features = 1

        def forward(self, image):
            return image.new_ones(len(image), 1)

    transformer = SpatialTransformer(Constant(), "projective")
    for size in ((5, 8), (12, 3)):
        image = torch.rand(2, 1, *size)
        torch.testing.assert_close(transformer(image), image, rtol=0, atol=1e-5)


def test_settings_reach_the_sampler():
    image, theta = images("affine"), torch.tensor([[[2.5, 0.0, 0.4], [0.3, 2.5, 0.0]]]).repeat(3, 1, 1)
    grid = affine_grid(theta, (9, 7))
    for settings in ({"kernel": "nearest"}, {"padding": "border"}, {"antialias": True}):
        out = build("affine", **settings).warp(image, theta).image
        assert torch.equal(out, sample(image, grid, **settings))
        assert not torch.equal(out, sample(image, grid))


def test_initial_theta_replaces_the_identity():
    start = torch.tensor([[0.5, 0.0, 0.3], [0.0, 0.5, -0.3]])
    transformer, image = build("affine", initial_theta=start), images("affine")
    assert torch.equal(transformer.theta(image), start.expand(3, 2, 3))
    start.zero_()  # the module keeps its own copy
    assert transformer.initial_theta[0, 0] == 0.5


def test_weight_decay_pulls_theta_to_its_start():
    transformer, image = build("attention"), images("attention")
    nn.init.normal_(transformer.regression.weight)
    nn.init.normal_(transformer.regression.bias)
    optimiser = torch.optim.SGD(transformer.regression.parameters(), lr=1.0, weight_decay=0.5)
    before = (transformer.theta(image) - transformer.initial_theta).abs()
    for p in transformer.regression.parameters():
        p.grad = torch.zeros_like(p)
    optimiser.step()
    after = (transformer.theta(image) - transformer.initial_theta).abs()
    torch.testing.assert_close(after, before / 2, rtol=1e-4, atol=1e-5)


def test_initial_theta_travels_with_the_state_and_is_not_trained():
    start = torch.tensor([0.5, 0.2, -0.2])
    trained, fresh = build("attention", initial_theta=start), build("attention", seed=1)
    assert "initial_theta" not in dict(trained.named_parameters())
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh(images("attention")), trained(images("attention")))


def test_fixed_attention_predicts_the_translation_alone():
    half = fixed_attention(0.5)
    assert (half.name, half.size, half.shape) == ("attention_0.5", 2, (2,))
    shift = torch.tensor([[0.3, -0.2], [0.0, 0.1]])
    full = torch.cat([torch.full((2, 1), 0.5), shift], dim=1)
    assert torch.equal(half.grid(shift, (4, 7)), attention_grid(full, (4, 7)))
    assert torch.equal(
        fixed_attention(1.0).grid(torch.zeros(1, 2), (4, 7)), attention_grid(full.new_tensor([[1, 0, 0]]), (4, 7))
    )


def test_fixed_attention_keeps_its_scale_where_theta_is_narrow():
    shift = torch.tensor([[0.25, -0.5]])
    grid = fixed_attention(0.3).grid(shift, (224, 224))
    assert torch.equal(fixed_attention(0.3).grid(shift.bfloat16(), (224, 224)), grid)


def test_an_initial_theta_may_be_numbers():
    module = SpatialTransformer(Features(1, 8, 8), "attention", initial_theta=[0.5, 0.0, 0.25])
    assert module.theta(torch.zeros(2, 1, 8, 8)).tolist() == 2 * [[0.5, 0.0, 0.25]]
    with pytest.raises(ValueError, match="k must be 2 or more"):
        regular_control_points(1)


def test_fixed_attention_crops_the_windows_it_starts_at():
    corners = torch.tensor([-0.5, 0.5])
    transformer = SpatialTransformer(Features(1, 8, 8), fixed_attention(0.5), (4, 4), initial_theta=corners)
    image = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(transformer(image), image[:, :, 4:, :4], rtol=0, atol=1e-6)


def test_sizes_of_theta_are_those_of_the_paper():
    sizes = {name: t.size for name, t in TRANSFORMATIONS.items()}
    assert sizes == {"affine": 6, "attention": 3, "projective": 8, "tps": 32, "affine3d": 12}
    assert all(t.name == name for name, t in TRANSFORMATIONS.items())


def test_a_transformation_of_ones_own_is_as_good_as_a_named_one():
    shear = Transformation(
        "shear",
        lambda s, size: affine_grid(s[:, :1, None] * torch.tensor([[0.0, 1, 0], [0, 0, 0]]) + torch.eye(2, 3), size),
        (0.0,),
    )
    transformer = build(shear, shape=(2, 9, 7))
    torch.testing.assert_close(transformer(images("affine")), images("affine"), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["homography", False, None, 3, []])
def test_unknown_transformation_is_refused_with_the_names_allowed(name):
    with pytest.raises(ValueError, match=re.escape(f"got {name!r}")) as error:
        build(name, shape=(1, 4, 4))
    assert all(repr(name) in str(error.value) for name in NAMES)


def test_initial_theta_of_another_shape_is_refused_with_both_shapes():
    with pytest.raises(ValueError, match="affine") as error:
        build("affine", initial_theta=torch.zeros(6))
    assert "(2, 3), got (6,)" in str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_stacked_replicas_give_what_each_gives_alone(name):
    replicas = [build(name, seed=s) for s in range(3)]
    for s, replica in enumerate(replicas):
        train_one_step(replica, images(name, seed=s))
    state = stack_module_state(replicas)
    image = torch.stack([images(name, seed=10 + s) for s in range(3)])

    def forward(parameters, buffers, image):
        return functional_call(replicas[0], (parameters, buffers), (image,))

    together = vmap(forward)(*state, image)
    alone = torch.stack([replica(x) for replica, x in zip(replicas, image, strict=True)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_identity_of_a_narrow_module_is_exact_to_float32(dtype):
    """Of a spline rounded to bfloat16 it would be 0.08 px off at 224."""
    transformer = SpatialTransformer(Features(1, 4, 4), "tps").to(dtype)
    grid = transformer.warp(torch.rand(1, 1, 4, 4, dtype=dtype)).grid
    wanted = affine_grid(torch.eye(2, 3)[None], (4, 4))
    torch.testing.assert_close(grid, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_identity_of_a_wide_module_is_exact_to_float64(name):
    for transformer in (build(name).double(), build(name).bfloat16().double()):
        warped = transformer.warp(images(name).double())
        torch.testing.assert_close(warped.image, images(name).double(), rtol=0, atol=1e-13)
        assert warped.theta.dtype == torch.float64


def test_the_output_is_of_the_images_type():
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert build("affine").to(dtype)(images("affine").to(dtype)).dtype == dtype


@pytest.mark.parametrize("transformation", [*NAMES, fixed_attention(0.5)])
def test_a_module_can_be_saved_whole_and_copied(transformation, tmp_path):
    name = transformation if isinstance(transformation, str) else "affine"
    transformer = build(transformation, shape=shape_for(name))
    torch.save(transformer, tmp_path / "transformer.pt")
    loaded = torch.load(tmp_path / "transformer.pt", weights_only=False)
    for other in (loaded, copy.deepcopy(transformer)):
        assert torch.equal(other(images(name)), transformer(images(name)))


def test_weights_saved_with_a_float32_start_can_be_loaded():
    state = build("tps", seed=1).state_dict()
    state["initial_theta"] = state["initial_theta"].float()
    transformer = build("tps")
    transformer.load_state_dict(state)
    torch.testing.assert_close(transformer(images("tps")), images("tps"), rtol=0, atol=1e-5)


def test_a_localisation_net_that_does_not_say_its_width_is_refused():
    with pytest.raises(TypeError, match="integer attribute out_features, got None"):
        SpatialTransformer(nn.Flatten(), "affine")


def test_a_bad_out_size_is_refused_when_the_module_is_made():
    with pytest.raises(TypeError, match=r"SpatialTransformer: out_size must be .* got 28"):
        build("affine", out_size=28)
