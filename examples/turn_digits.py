"""Watch a trained spatial transformer turn digits: python examples/turn_digits.py [MODEL.safetensors [PICTURE.png]]

Nothing is trained or downloaded: ten test digits of MNIST lie in digits.png, trained models in models/. The digits are
distorted as in the task that the model was trained on; the picture shows input, sampling grid on it, and output.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from stn.data.distortions import distortion
from stn.data.errors import DataError
from stn.results.warp_figures import Warp, warp_gallery
from stn.trained import SUFFIX, find

HERE = Path(__file__).parent


def turn(model: Path, picture: Path, seed: int = 0) -> list[int]:
    """Draws the picture; returns what the network reads."""
    trained = find(model)
    net = trained.net()
    strip = np.asarray(Image.open(HERE / "digits.png"))  # (28, 280): the digits 0 to 9 side by side
    digits = torch.from_numpy(strip.copy()).view(28, 10, 28).transpose(0, 1)
    warp = distortion(**trained.record["config"]["task"]["distortion"])
    images = warp(digits, torch.Generator().manual_seed(seed))  # (10, 1, H, W) in [0, 1]
    with torch.no_grad():
        logits, seen = net.observe(images)
    if not seen:
        raise SystemExit(f"{model} has no spatial transformer")
    read = logits.argmax(1).tolist()
    rows = [
        Warp(images[i, 0].numpy(), seen[0].grid[i].numpy(), seen[0].image[i, 0].numpy(), f"{i}, read as {read[i]}")
        for i in range(10)
    ]
    warp_gallery(
        picture, rows, f"{trained.name}: {trained.record['metrics']['test/error_pct']:.2f} % test error", per_line=2
    )
    return read


def main() -> None:
    model = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "models" / f"mnist_rts_st_cnn_tps{SUFFIX}"
    picture = Path(sys.argv[2]) if len(sys.argv) > 2 else Path("turned_digits.png")
    try:
        read = turn(model, picture)
    except (DataError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"read {read}; wrote {picture}")


if __name__ == "__main__":
    main()
