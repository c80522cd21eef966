import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stn.nets.budget import count_parameters
from stn.nets.cub import MultiStreamTransformer, tiling_centres
from stn.nets.windows import window_boxes_px, windows_at
from stn.tasks.recipe import is_localiser


def tiny(n_windows, image_px=64, crop_px=32, **settings):
    torch.manual_seed(0)
    return MultiStreamTransformer("small", n_windows, 5, image_px=image_px, crop_px=crop_px, width=4, **settings)


def test_windows_begin_by_tiling_the_image():
    assert tiling_centres(1).tolist() == [[0, 0]]
    assert tiling_centres(2).tolist() == [[-0.5, 0], [0.5, 0]]
    assert tiling_centres(4).tolist() == [[-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5], [0.5, 0.5]]
    for n in (3, 5, 9):
        centres = tiling_centres(n)
        assert len({tuple(c) for c in centres.tolist()}) == n
        assert centres.abs().max() <= 0.5
    theta = tiny(4).theta(torch.rand(2, 3, 64, 64))
    assert theta.shape == (2, 4, 2)
    boxes_px = window_boxes_px(windows_at(theta, 0.5), 64)
    quadrants = [[0, 0, 32, 32], [32, 0, 64, 32], [0, 32, 32, 64], [32, 32, 64, 64]]
    assert boxes_px.tolist() == [quadrants, quadrants]


def test_a_window_sees_the_pixels_in_its_box():
    """At half scale and half size the sampler's points are the pixels' centres: the crop is a slice."""
    net, image = tiny(2), torch.rand(3, 3, 64, 64)
    corner_px = torch.tensor([[[0, 0], [32, 5]], [[7, 20], [16, 32]], [[31, 1], [2, 30]]])
    theta = (corner_px + 16) / 32 - 1
    boxes_px = window_boxes_px(windows_at(theta, 0.5), 64)
    assert torch.equal(boxes_px[..., :2], corner_px.float())
    net.theta = lambda image: theta
    for k, (crop, *_) in enumerate(net.warps(image)):
        for i, (x, y) in enumerate(corner_px[:, k].tolist()):
            torch.testing.assert_close(crop[i], image[i, :, y : y + 32, x : x + 32], rtol=0, atol=1e-5)


def test_an_image_of_the_crops_size_is_enlarged():
    net, image = tiny(2, image_px=32), torch.rand(1, 3, 32, 32)
    ((crop, *_), _) = net.warps(image)
    assert crop.shape == (1, 3, 32, 32)
    wanted = F.interpolate(image[:, :, 8:24, 0:16], scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(crop[..., 2:-2, 2:-2], wanted[..., 2:-2, 2:-2], rtol=0, atol=1e-5)


def test_the_localisation_net_sees_a_large_image_at_half_its_size():
    net, image, seen = tiny(2).eval(), torch.rand(2, 3, 64, 64), []
    net.localisation.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    net(image)
    torch.testing.assert_close(seen[0], image.unflatten(2, (32, 2)).unflatten(4, (32, 2)).mean(dim=(3, 5)))


@pytest.mark.parametrize("n_windows", [0, 1, 2, 4])
def test_every_parameter_is_trained_once_the_windows_have_begun_to_move(n_windows):
    net = tiny(n_windows, dropout=0.0)
    if n_windows:
        nn.init.normal_(net.regression.weight, std=0.01)
    logits = net(torch.rand(6, 3, 64, 64))
    assert logits.shape == (6, 5)
    F.cross_entropy(logits, torch.arange(6) % 5).backward()
    still = [name for name, p in net.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert still == []


def test_the_regression_is_the_first_to_move():
    net = tiny(2, dropout=0.0)
    F.cross_entropy(net(torch.rand(6, 3, 64, 64)), torch.arange(6) % 5).backward()
    assert net.regression.weight.grad.abs().max() > 0
    assert net.regression.weight.abs().max() == 0


def test_streams_have_weights_of_their_own_and_see_only_their_window():
    net, image = tiny(2).eval(), torch.rand(1, 3, 64, 64)
    channels = net.streams[0].channels
    before = net.descriptor([warped.image for warped in net.warps(image)])
    image[..., 40:] = 0.5  # in the right window alone
    after = net.descriptor([warped.image for warped in net.warps(image)])
    assert before.shape == (1, 2 * channels)
    assert torch.equal(before[:, :channels], after[:, :channels])
    assert not torch.equal(before[:, channels:], after[:, channels:])
    first, second = (next(stream.parameters()) for stream in net.streams)
    assert not torch.equal(first, second)


def test_the_localisation_net_and_its_regression_have_a_learning_rate_of_their_own():
    net = tiny(2)
    slow = sum(p.numel() for name, p in net.named_parameters() if is_localiser(name))
    assert slow == count_parameters(net.localisation) + count_parameters(net.regression)
    assert not any(is_localiser(name) for name, _ in tiny(0).named_parameters())


def test_building_does_not_touch_the_running_averages():
    net = tiny(2)
    averages = [m.running_mean for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(averages) == 12
    assert all((average == 0).all() for average in averages)
    assert all(m.training for m in net.modules())


@pytest.mark.parametrize(("n_windows", "image_px"), [(0, 224), (2, 224), (2, 448), (4, 448)])
def test_the_papers_networks_at_full_size(n_windows, image_px):
    with torch.device("meta"):
        net = MultiStreamTransformer("googlenet", n_windows, 200, image_px=image_px)
    inception = 5_599_904  # torchvision's GoogLeNet, 6 624 904, without its fc
    streams = max(n_windows, 1)
    wanted = streams * inception + (streams * 1024 + 1) * 200
    if n_windows:
        wanted += inception + (1024 + 1) * 128 + (49 * 128 + 1) * 128 + (128 + 1) * 2 * n_windows
    assert count_parameters(net) == wanted


def test_one_step_of_the_papers_network_at_448_px():
    net = MultiStreamTransformer("googlenet", 2, 200, image_px=448)
    loss = F.cross_entropy(net(torch.rand(2, 3, 448, 448)), torch.tensor([3, 7]))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)
    assert net.regression.weight.grad.abs().max() > 0


def test_wrong_settings_and_images_are_refused():
    for settings in ({"n_windows": -1}, {"n_windows": 2, "image_px": 48}, {"n_windows": 2, "scale": 0.0}):
        with pytest.raises(ValueError, match="n_windows must not be negative, image_px 32 or 64"):
            tiny(**settings)
    with pytest.raises(ValueError, match="padding one of"):
        tiny(2, padding="mirror")
    with pytest.raises(ValueError, match=r"image must be \(N, 3, 64, 64\), got \(1, 3, 32, 32\)"):
        tiny(2)(torch.rand(1, 3, 32, 32))
    assert tiny(0).warps(torch.rand(1, 3, 64, 64)) == []
