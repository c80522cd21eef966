"""What crops of photographs are compared by (App. A.2 on CUB): activations of a net trained on ImageNet or on birds."""

import torch.nn.functional as F
from torch import Tensor, nn

from stn.nets.backbones import Backbone, small

# Of EfficientNet's seven stages: those that end a resolution, 1/8, 1/16 and 1/32 of the crop, and how many cells a side
# are left of their maps. A coarse map of a low stage still says where in the crop something is.
STAGES = {2: 4, 4: 2, 6: 1}


class BackboneActivations(nn.Module):
    """Three stages of "efficientnet_lite0", each averaged over few cells, as a list. Its weights are frozen.

    Shapes: crops (N, 3, H, W) in [0, 1] -> (N, 40, 4, 4), (N, 112, 2, 2), (N, 320, 1, 1).
    Deviation: the paper compares all activations of three layers; of a net this deep and crops of natural size that
    would be mostly texture.
    """

    def __init__(self, features: Backbone) -> None:
        super().__init__()
        self.features = features.eval().requires_grad_(False)

    def forward(self, crops: Tensor) -> list[Tensor]:
        net, activations = self.features.net, []
        maps = net.bn1(net.conv_stem((crops - self.features.mean) / self.features.std))
        for stage, block in enumerate(net.blocks):
            maps = block(maps)
            if stage in STAGES:
                activations.append(F.adaptive_avg_pool2d(maps, STAGES[stage]))
        return activations


class SpeciesActivations(nn.Module):
    """The last maps and the class scores of a trained `cub_cnn` on the backbone "small", as a list; frozen.

    Shapes: crops (N, 3, H, W) in [0, 1] -> (N, channels, h, w), (N, classes).
    Deviation: the paper compares the activations of all three layers of its CNN. The lower ones of this net tell birds
    from drawn foliage no better than ImageNet's: with them the loss has its minimum off the birds.
    """

    def __init__(self, features: Backbone, classifier: nn.Linear) -> None:
        super().__init__()
        self.features = features.eval().requires_grad_(False)
        self.classifier = classifier.requires_grad_(False)

    @classmethod
    def from_weights(cls, weights: dict[str, Tensor]) -> "SpeciesActivations":
        """Raises: ValueError when they are not those of a `cub_cnn` on "small"."""
        stream = "streams.0."
        of_stream = {name.removeprefix(stream): tensor for name, tensor in weights.items() if name.startswith(stream)}
        try:
            features = small(len(of_stream["net.0.weight"]))
            features.load_state_dict(of_stream)
            classifier = nn.Linear(features.channels, len(weights["classifier.bias"]))
            classifier.load_state_dict({name: weights[f"classifier.{name}"] for name in ("weight", "bias")})
        except (KeyError, RuntimeError) as error:
            raise ValueError('the encoder\'s weights are not those of a cub_cnn on the backbone "small"') from error
        return cls(features, classifier)

    def forward(self, crops: Tensor) -> list[Tensor]:
        maps = self.features(crops)
        return [maps, self.classifier(maps.mean((2, 3)))]
