"""What crops of photographs are compared by (App. A.2 on CUB): activations of a net that was trained on ImageNet."""

import torch.nn.functional as F
from torch import Tensor, nn

from stn.nets.backbones import Backbone

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
        net, found = self.features.net, []
        maps = net.bn1(net.conv_stem((crops - self.features.mean) / self.features.std))
        for stage, block in enumerate(net.blocks):
            maps = block(maps)
            if stage in STAGES:
                found.append(F.adaptive_avg_pool2d(maps, STAGES[stage]))
        return found
