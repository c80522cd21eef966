"""What a training step costs, beside loops as one would write them without this suite; and where its time goes."""

import copy
import statistics
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
import torchvision.transforms.v2 as transforms
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from stn.bench.networks import wait_for
from stn.families import build
from stn.nets.frequency import FrequencyConv2d, direct_convolutions
from stn.nets.layers import InputConv2d
from stn.nets.mnist import TransformedClassifier
from stn.settings import RunSettings
from stn.tasks.classification import Classification, cross_entropy
from stn.tasks.precision import computing
from stn.train.memory import keep_freed_memory, return_freed_memory

MATRIX_SIDE = 2048  # of the product whose speed counts as the machine's peak


class PlainConvPool(nn.Module):
    """Convolution, ReLU, max-pool in the order of the paper's text, by torch's own modules."""

    def __init__(self, block: nn.Sequential) -> None:
        super().__init__()
        conv = block[0]
        self.conv = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, device=conv.weight.device)
        self.conv.load_state_dict(conv.state_dict())

    def forward(self, image: Tensor) -> Tensor:
        return F.max_pool2d(F.relu(self.conv(image)), 2, ceil_mode=True)


def plain_net(net: nn.Module) -> nn.Module:
    """The same function with the same weights, without what makes ours fast on the CPU."""
    if isinstance(net, nn.Sequential) and len(net) == 3 and isinstance(net[1], nn.MaxPool2d):
        return PlainConvPool(net)
    plain = copy.copy(net)
    plain._modules = {name: plain_net(child) for name, child in net.named_children()}
    if isinstance(net, InputConv2d):
        raise ValueError("a first convolution outside of a conv_pool")
    return plain


class PublicTransformer(nn.Module):
    """An affine spatial transformer by torch's own grid and sampler, as public implementations have it."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, image: Tensor) -> Tensor:
        grid = F.affine_grid(self.transformer.theta(image), list(image.shape), align_corners=False)
        return F.grid_sample(image, grid, align_corners=False)


def public_net(net: nn.Module) -> nn.Module:
    """The network as the paper's text is usually written down in torch. Raises: ValueError for other grids than affine
    ones, which torch has not.
    """
    plain = plain_net(net)
    if isinstance(net, TransformedClassifier):
        (transformer,) = plain.transformers
        if transformer.transformation.name != "affine":
            raise ValueError(f"torch has no grid for {transformer.transformation.name}")
        plain.transformers = PublicTransformer(transformer)
        plain.pool = nn.AvgPool2d(net.pool.block) if hasattr(net.pool, "block") else nn.Identity()
    return plain


class _Pictures(Dataset):
    """MNIST, one picture at a time, rotated by torchvision's transform, as most training scripts feed it."""

    def __init__(self, digits, rotation_deg: float) -> None:
        self.digits = digits
        self.transform = transforms.Compose(
            [
                transforms.ToPILImage(),
                transforms.RandomRotation(rotation_deg, transforms.InterpolationMode.BILINEAR),
                transforms.ToImage(),
                transforms.ToDtype(torch.float32, scale=True),
            ]
        )

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(self.digits.images[i]), int(self.digits.labels[i])


class Contenders:
    """Ways to train one cell; each is a function () that does one step.

    Ours are in the `precision` of the settings, the others in float32. "direct": ours without the frequency domain.
    "public layers": torch's own, fed by a DataLoader with images that were distorted once.
    """

    def __init__(self, settings: RunSettings) -> None:
        self.settings = settings
        self.device = torch.device("cuda" if settings.device == "cuda" else "cpu")
        if getattr(settings.model, "transformers", 1) > 1:
            raise ValueError(f"what=step: {settings.model.name} has several transformers, one at most can be measured")
        self.steps: dict[str, Callable[[], None]] = {}
        self.steps["ours"] = self._own()
        self.steps["plain loop"] = self._plain(self._batches())
        if settings.task.name == "mnist_r":
            self.steps["plain loop, DataLoader"] = self._plain(self._loader())
        if any(isinstance(layer, FrequencyConv2d) for layer in self._module().net.modules()):
            self.steps["direct"] = self._direct()
        if settings.model.name in ("fcn", "cnn", "st_fcn_affine", "st_cnn_affine"):
            self.steps["public layers"] = self._plain(self._fixed(), public_net)

    def time_s(self, name: str, n: int) -> float:
        """Seconds per step of n steps; plain loops run with the memory allocator as it is by default."""
        (return_freed_memory if name.startswith(("plain", "public")) else keep_freed_memory)()
        return time_s(self.steps[name], n, self.device)

    def _module(self) -> Classification:
        module = build(self.settings).module.to(self.device)
        module.setup("fit")  # from here on all contenders are in float32, convolutions on CUDA, too
        module.precision = self.settings.precision
        return module

    def _own(self) -> Callable[[], None]:
        module = self._module()
        optimiser, schedule = module.recipe.optimiser_of(module.net)

        def step() -> None:
            with computing(module.precision, module.device):
                loss, _ = module.batch_loss()
            module.update(optimiser, loss)
            schedule.step()

        return step

    def _direct(self) -> Callable[[], None]:
        step = self._own()

        def direct() -> None:
            with direct_convolutions():
                step()

        return direct

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        module = self._module()
        while True:
            batch = module.draw_batch()
            yield batch.images, batch.labels

    def _loader(self) -> Iterator[tuple[Tensor, Tensor]]:
        module = self._module()
        pictures = _Pictures(module.stream.train.to("cpu"), self.settings.task.distortion["rotation_deg"])
        loader = DataLoader(pictures, self.settings.recipe["batch_size"], shuffle=True, drop_last=True)
        while True:
            for images, labels in loader:
                yield images.to(module.device), labels.to(module.device)

    def _fixed(self, batches: int = 20) -> Iterator[tuple[Tensor, Tensor]]:
        module = self._module()
        drawn = [module.draw_batch() for _ in range(batches)]
        fixed = TensorDataset(*(torch.cat([getattr(b, name) for b in drawn]).cpu() for name in ("images", "labels")))
        loader = DataLoader(fixed, self.settings.recipe["batch_size"], shuffle=True, drop_last=True)
        while True:
            for images, labels in loader:
                yield images.to(module.device), labels.to(module.device)

    def _plain(self, batches: Iterator[tuple[Tensor, Tensor]], made: Callable = plain_net) -> Callable[[], None]:
        module = self._module()
        net = made(module.net).to(memory_format=torch.contiguous_format)
        recipe = module.recipe
        # AdamW for Muon, too: torch's own takes no filters.
        make = torch.optim.SGD if recipe.optimiser.name == "sgd" else torch.optim.AdamW
        optimiser = make(net.parameters(), lr=recipe.optimiser.lr, weight_decay=recipe.optimiser.weight_decay)

        def step() -> None:
            images, labels = next(batches)
            optimiser.zero_grad()
            F.cross_entropy(net(images), labels).backward()
            optimiser.step()

        return step


def measure(settings: RunSettings, seconds: float, repeats: int) -> dict[str, dict[str, float]]:
    """Each contender's `ms` per step, `images_per_s` and `ratio`, its images/s over those of the plain loop.

    In turn `repeats` times, about `seconds` each; `ms` is the median, `ratio` the median of the ratios within a turn.
    """
    contenders = Contenders(settings)
    counts = {n: max(1, round(seconds / contenders.time_s(n, 2))) for n in contenders.steps}
    turns = [{n: contenders.time_s(n, counts[n]) for n in contenders.steps} for _ in range(repeats)]
    rates = [{n: settings.recipe["batch_size"] / s for n, s in turn.items()} for turn in turns]
    return {
        name: {
            "ms": 1000 * statistics.median(turn[name] for turn in turns),
            "images_per_s": statistics.median(rate[name] for rate in rates),
            "ratio": statistics.median(rate[name] / rate["plain loop"] for rate in rates),
        }
        for name in contenders.steps
    }


def shares(settings: RunSettings, repeats: int = 9) -> dict[str, float]:
    """Milliseconds, forward and backward, of the parts of one step, each on its own: "distortion", "localisation",
    "grid and sampler", "classifier", "optimiser". A part that a network does not have is left out.
    """
    keep_freed_memory()
    module = Contenders(settings)._module()
    net, optimiser = module.net, module.recipe.optimiser_of(module.net)[0]
    images = module.draw_batch().images
    parts = {"distortion": module.draw_batch}
    if hasattr(net, "transformers"):
        (transformer,) = net.transformers
        theta = transformer.theta(images).detach().requires_grad_()
        parts["localisation"] = lambda: transformer.theta(images).sum().backward()
        parts["grid and sampler"] = lambda: transformer.warp(images, theta).image.sum().backward()
        seen = images.clone().requires_grad_()  # the transformer wants the gradient to its output
        parts["classifier"] = lambda: net.classifier(net.pool(seen)).sum().backward()
    else:
        parts["classifier"] = lambda: net(images).sum().backward()
    cross_entropy(net(images), module.draw_batch().labels).backward()
    parts["optimiser"] = optimiser.step
    device = module.device
    return {
        name: 1000 * statistics.median(time_s(part, 3, device) for _ in range(repeats)) for name, part in parts.items()
    }


def step_flop(settings: RunSettings) -> int:
    """FLOP of the matrix products and convolutions of one training step, forward and backward."""
    module = Contenders(settings)._module()
    batch = module.draw_batch()
    with FlopCounterMode(display=False) as counter:
        cross_entropy(plain_net(module.net)(batch.images), batch.labels).backward()
    return counter.get_total_flops()


def peak_flop_per_s(device: str, repeats: int = 5) -> float:
    """The machine's speed in a large float32 matrix product, with the threads that torch uses now."""
    a = torch.rand(MATRIX_SIDE, MATRIX_SIDE, device=device)
    return 2 * MATRIX_SIDE**3 / min(time_s(lambda: a @ a, 1, a.device) for _ in range(repeats + 1))


def time_s(step: Callable[[], object], n: int, device: torch.device) -> float:
    """Seconds per call, after one that does not count.

    With one thread on a CPU, those that the process computed: who else uses the machine does not count.
    """
    clock = time.perf_counter if device.type == "cuda" or torch.get_num_threads() > 1 else time.process_time
    step()
    wait_for(device)
    started = clock()
    for _ in range(n):
        step()
    wait_for(device)
    return (clock() - started) / n
