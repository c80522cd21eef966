"""The training loop against plain torch code, and what must not depend on what."""

import copy
import math

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F

from experiments.config import compose_run
from stn.data.mnist import Digits
from stn.data.seeds import stream_seed
from stn.families import build
from stn.families.mnist import Recipe
from stn.tasks.classification import Classification, cross_entropy
from stn.tasks.precision import computing
from stn.tasks.recipe import Sgd
from stn.tasks.training import CHUNK_STEPS
from stn.validation import checked
from tests.tiny import SGD, STEP

BATCH, SEED = 16, 0


class Recorder(Classification):
    """Keeps the images and the learning rates of every step."""

    def draw_batch(self):
        batch = super().draw_batch()
        self.__dict__.setdefault("seen", []).append((batch.images, batch.labels))
        self.__dict__.setdefault("lrs", []).append([g["lr"] for g in self.optimizers().param_groups])
        return batch


@pytest.fixture
def module_of(toy_mnist, settings_of):
    """A module before training, with a recorder in it."""

    def make(task="mnist_r", model="fcn", *overrides, **recipe):
        module = build(settings_of(task, model, *overrides, **recipe)).module
        module.__class__ = Recorder
        return module

    return make


def fit(module):
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module)
    return module


def plain_net(module):
    """A copy of the untrained net, in the memory format that the CPU trains in."""
    return copy.deepcopy(module.net).to(memory_format=torch.channels_last)


def batches(module):
    """The steps' images and labels: digits drawn with replacement and distorted, a stream per chunk."""
    digits, generator = module.stream.train, torch.Generator()
    for step in range(module.recipe.steps):
        if step % CHUNK_STEPS == 0:
            generator.manual_seed(stream_seed(SEED, "train", step // CHUNK_STEPS))
        index = torch.randint(len(digits), (BATCH,), generator=generator)
        yield module.stream.distortion(digits.images[index], generator), digits.labels[index]


def assert_equal(found, wanted, **tolerance):
    found, wanted = dict(found.named_parameters()), dict(wanted.named_parameters())
    assert found.keys() == wanted.keys()
    for name in found:
        torch.testing.assert_close(found[name], wanted[name], **tolerance, msg=lambda m, name=name: f"{name}: {m}")


# -- steps ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["fcn", "st_cnn_affine"])
def test_sgd_steps_are_those_computed_by_hand(module_of, model):
    lr, momentum, decay = 0.02, 0.8, 0.1
    module = module_of(
        model=model,
        steps=3,
        optimiser=SGD | {"lr": lr, "momentum": momentum, "weight_decay": decay},
        schedule=STEP | {"every": 2},
    )
    net = plain_net(module)
    velocity = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    for step, (images, labels) in enumerate(batches(module)):
        loss = -F.log_softmax(net(images), dim=1)[torch.arange(BATCH), labels].mean()
        gradients = torch.autograd.grad(loss, list(net.parameters()))
        with torch.no_grad():
            for (name, p), gradient in zip(net.named_parameters(), gradients, strict=True):
                velocity[name] = momentum * velocity[name] + gradient + decay * p
                p -= (lr if step < 2 else lr / 10) * velocity[name]
    assert_equal(fit(module).net, net, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model", ["fcn", "st_cnn_affine"])
def test_adamw_steps_are_those_computed_by_hand(module_of, model):
    lr, decay = 0.002, 0.1
    module = module_of(model=model, steps=3, optimiser={"lr": lr, "weight_decay": decay}, schedule=STEP)
    net = plain_net(module)
    first = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    second = copy.deepcopy(first)
    for step, (images, labels) in enumerate(batches(module), start=1):
        gradients = torch.autograd.grad(F.cross_entropy(net(images), labels), list(net.parameters()))
        with torch.no_grad():
            for (name, p), gradient in zip(net.named_parameters(), gradients, strict=True):
                first[name] = 0.9 * first[name] + 0.1 * gradient
                second[name] = 0.999 * second[name] + 0.001 * gradient**2
                mean, square = first[name] / (1 - 0.9**step), second[name] / (1 - 0.999**step)
                p -= lr * decay * p + lr * mean / (square.sqrt() + 1e-8)
    # AdamW divides a gradient by its own size: where that is rounding noise, so is the step.
    assert_equal(fit(module).net, net, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("model", "recipe"),
    [
        ("fcn", {"optimiser": SGD | {"nesterov": True}, "schedule": STEP}),
        ("st_fcn_tps", {}),
        ("st_cnn_projective", {"optimiser": {"lr": 0.002}}),
    ],
)
def test_chunks_of_steps_are_bit_for_bit_a_plain_loop(module_of, model, recipe):
    steps = CHUNK_STEPS + 10  # one chunk and a part
    module = module_of("mnist_r", model, steps=steps, **recipe)
    r, net = module.recipe.optimiser, plain_net(module)
    if isinstance(r, Sgd):
        optimiser = torch.optim.SGD(net.parameters(), r.lr, r.momentum, nesterov=True, fused=True)
        schedule = torch.optim.lr_scheduler.StepLR(optimiser, STEP["every"], STEP["factor"])
    else:
        optimiser = torch.optim.AdamW(net.parameters(), r.lr, weight_decay=0.0, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, r.lr, total_steps=steps + 1, pct_start=0.2, cycle_momentum=False
        )
    for images, labels in batches(module):
        optimiser.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimiser.step()
        schedule.step()
    fit(module)
    assert module.steps_done == steps == module.curve["step"][-1]
    assert_equal(module.net, net, rtol=0, atol=0)


def test_labels_are_smoothed_in_training_alone(module_of):
    """A share of each label is spread over all ten classes (Szegedy et al. 2016, Sect. 7)."""
    module = module_of(steps=1, optimiser=SGD | {"lr": 0.0}, schedule=STEP, label_smoothing=0.2)
    ((images, labels),) = batches(module)
    wanted = 0.8 * F.one_hot(labels, 10) + 0.2 / 10
    loss = -(wanted * plain_net(module)(images).log_softmax(1)).sum(1).mean()
    assert fit(module).curve["train/loss"] == [pytest.approx(loss.item(), rel=1e-5)]
    assert cross_entropy(torch.zeros(2, 10), torch.tensor([3, 4])).item() == pytest.approx(math.log(10))


def test_an_image_without_labels_counts_for_nothing():
    logits, labels = torch.randn(3, 5, 11), torch.randint(11, (3, 5))
    labels[1] = -100
    wanted = (cross_entropy(logits[:1], labels[:1]) + cross_entropy(logits[2:], labels[2:])) / 2
    torch.testing.assert_close(cross_entropy(logits, labels), wanted)
    assert cross_entropy(logits[1:2], labels[1:2]) == 0


def test_the_stream_is_told_how_much_of_the_training_is_done(module_of):
    module, told = module_of(steps=2 * CHUNK_STEPS, distortion_ramp=1.0), []
    draw = module.stream.draw
    module.stream.draw = lambda n, generator: told.append(module.stream.progress) or draw(n, generator)
    fit(module)
    assert told == CHUNK_STEPS * [0.0] + CHUNK_STEPS * [0.5]
    first, second = (torch.stack([images for images, _ in half]) for half in halves(module.seen))
    upright = module.stream.train.images.unsqueeze(1) / 255
    assert all((image - upright).abs().amax((1, 2, 3)).min() < 1e-4 for image in first[0])
    assert not all((image - upright).abs().amax((1, 2, 3)).min() < 1e-4 for image in second[0])


def halves(items):
    return items[: len(items) // 2], items[len(items) // 2 :]


def test_the_curve_has_the_mean_loss_and_error_of_every_chunk(module_of):
    module = module_of(steps=CHUNK_STEPS + 10, optimiser=SGD | {"lr": 0.0}, schedule=STEP)
    net = plain_net(module)
    with torch.no_grad():
        found = [
            (F.cross_entropy(net(x), y).item(), (net(x).argmax(1) != y).float().mean()) for x, y in batches(module)
        ]
    losses, errors = torch.tensor(found).T
    curve = fit(module).curve
    assert curve["step"] == [CHUNK_STEPS, CHUNK_STEPS + 10]
    chunks = [slice(None, CHUNK_STEPS), slice(CHUNK_STEPS, None)]
    assert curve["train/loss"] == pytest.approx([losses[c].mean().item() for c in chunks], rel=1e-5)
    assert curve["train/error_pct"] == pytest.approx([100 * errors[c].mean().item() for c in chunks], rel=1e-5)


# -- rates ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["fcn", "cnn", "st_fcn_affine", "st_fcn_tps", "st_cnn_affine", "st_cnn_projective"])
def test_the_localiser_multiplier_reaches_exactly_the_transformers_parameters(module_of, model):
    def change(multiplier):
        module = module_of(model=model, steps=1, localiser_lr_multiplier=multiplier, optimiser=SGD, schedule=STEP)
        before = {name: p.detach().clone() for name, p in module.net.named_parameters()}
        return {name: p.detach() - before[name] for name, p in fit(module).net.named_parameters()}

    full, tenth = change(1.0), change(0.1)
    for name, moved in full.items():
        factor = 0.1 if name.startswith("transformers.") else 1.0
        torch.testing.assert_close(tenth[name], factor * moved, rtol=1e-3, atol=1e-7)
    of_transformer = [moved for name, moved in full.items() if name.startswith("transformers.")]
    assert any(moved.any() for moved in of_transformer) == model.startswith("st")


@pytest.mark.parametrize("model", ["cnn", "st_cnn_tps"])
def test_every_parameter_is_trained(module_of, model):
    module = module_of("mnist_r", model, steps=3)
    before = {name: p.detach().clone() for name, p in module.net.named_parameters()}
    assert all((p != before[name]).any() for name, p in fit(module).net.named_parameters())


def test_the_step_schedule_divides_the_rate_at_its_steps(module_of):
    module = module_of(
        model="st_fcn_affine", steps=110, batch_size=2, optimiser=SGD | {"lr": 0.01}, schedule=STEP | {"every": 40}
    )
    (lrs, localiser) = zip(*fit(module).lrs, strict=True)
    assert lrs == pytest.approx([0.01] * 40 + [0.001] * 40 + [0.0001] * 30)
    assert localiser == lrs


def test_one_cycle_warms_up_to_its_peak_and_ends_at_nothing(module_of):
    steps, peak = 99, 0.006
    module = module_of(
        model="st_fcn_affine", steps=steps, batch_size=2, optimiser={"lr": peak}, localiser_lr_multiplier=0.5
    )
    (lrs, localiser) = zip(*fit(module).lrs, strict=True)
    top = 19  # warmup_fraction 0.2 of 100
    assert lrs[0] == pytest.approx(peak / 25)
    assert lrs[top] == max(lrs) == pytest.approx(peak)
    assert sorted(lrs[: top + 1]) == list(lrs[: top + 1])
    assert sorted(lrs[top:], reverse=True) == list(lrs[top:])
    cosine = [peak / 2 * (1 + math.cos(math.pi * (step - top) / (steps - top))) for step in range(top, steps)]
    assert lrs[top:] == pytest.approx(cosine, abs=peak * 1e-4)
    assert lrs[-1] < peak / 1000
    assert localiser == pytest.approx([lr / 2 for lr in lrs])


# -- recipes --------------------------------------------------------------------------------------------------------


GOOD = compose_run(["task=mnist_r", "model=fcn", "protocol=paper"]).recipe


def recipe(name, value):
    """The paper's, with another value of the setting with this dotted name."""
    group, _, last = name.rpartition(".")
    changed = {group: GOOD[group] | {last: value}} if group else {last: value}
    return checked(Recipe, GOOD | changed, "recipe")


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("optimiser.name", "adam", "sgd, adamw, muon"),
        ("schedule.name", "cosine", "step, milestones, one_cycle"),
        ("padding", "reflect", "zeros, border"),
        ("steps", 1.5, "an integer"),
        ("steps", "many", "an integer"),
        ("steps", True, "an integer"),
        ("steps", None, "an integer"),
        ("optimiser.lr", "0.1", "a number"),
        ("optimiser.lr", False, "a number"),
        ("optimiser.nesterov", 1, "true or false"),
        ("optimiser.nesterov", "false", "true or false"),
        ("optimiser.name", 1, "sgd, adamw, muon"),
        ("steps", 0, "more than 0"),
        ("steps", -5, "more than 0"),
        ("batch_size", 0, "more than 0"),
        ("budget_fraction", 0.0, "more than 0"),
        ("test_draws", 0, "more than 0"),
        ("schedule.every", 0, "more than 0"),
        ("optimiser.lr", -0.1, "0 or more"),
        ("optimiser.lr", math.nan, "a finite number"),
        ("optimiser.lr", math.inf, "a finite number"),
        ("optimiser.momentum", -1.0, "0 or more"),
        ("optimiser.weight_decay", -1.0, "0 or more"),
        ("localiser_lr_multiplier", -1.0, "0 or more"),
        ("schedule.factor", -1.0, "0 or more"),
    ],
)
def test_a_recipe_refuses_what_cannot_be(name, value, allowed):
    with pytest.raises(ValueError, match=rf"^recipe\.{name} must be ") as error:
        recipe(name, value)
    message = str(error.value)
    assert "\n" not in message
    assert repr(value) in message
    assert allowed in message


@pytest.mark.parametrize("share", [1.5, -0.5])
def test_a_warm_up_is_a_share_of_the_steps(share):
    with pytest.raises(ValueError, match=r"^recipe\.schedule\.warmup_fraction must be [01] or"):
        recipe("schedule", {"name": "one_cycle", "warmup_fraction": share})


@pytest.mark.parametrize("name", ["lr", "optimiser.warmup_fraction", "schedule.momentum", "filters"])
def test_a_recipe_has_no_key_that_is_not_read(name):
    with pytest.raises(ValueError, match=f"^unknown key 'recipe.{name}'$"):
        recipe(name, 1)


@pytest.mark.parametrize("name", ["steps", "optimiser", "optimiser.momentum", "schedule.name", "schedule.every"])
def test_a_recipe_lacks_no_key(name):
    group, _, last = name.rpartition(".")
    lacking = {key: value for key, value in (GOOD[group] if group else GOOD).items() if key != last}
    with pytest.raises(ValueError, match=f"^missing key 'recipe.{name}'$"):
        checked(Recipe, GOOD | {group: lacking} if group else lacking, "recipe")


def test_nesterov_without_momentum_is_refused():
    with pytest.raises(ValueError, match=r"^recipe\.optimiser: nesterov"):
        recipe("optimiser", SGD | {"nesterov": True, "momentum": 0.0})


def test_a_recipe_takes_an_integer_where_a_number_may_have_a_fraction():
    assert recipe("optimiser.lr", 1).optimiser.lr == 1


# -- images ---------------------------------------------------------------------------------------------------------


def drawn(module):
    return [images for images, _ in fit(module).seen]


def test_training_images_depend_on_seed_and_chunk_only(module_of):
    steps = CHUNK_STEPS + 2
    torch.manual_seed(1)
    images = drawn(module_of("mnist_e", "fcn", steps=steps, batch_size=4))
    torch.manual_seed(2)
    recipe = {"steps": CHUNK_STEPS + 1, "optimiser": SGD | {"lr": 0.5}, "batch_size": 4}
    others = drawn(module_of("mnist_e", "st_cnn_tps", **recipe))
    assert all(torch.equal(a, b) for a, b in zip(images, others, strict=False))
    elsewhere = drawn(module_of("mnist_e", "fcn", "seed=1", steps=2, batch_size=4))
    assert not torch.equal(images[0], elsewhere[0])
    assert len({image.numpy().tobytes() for image in images}) == steps  # each distorted anew


@pytest.mark.parametrize("task", ["mnist_r", "mnist_rts", "mnist_p", "mnist_e", "mnist_tc"])
def test_test_images_are_the_same_for_every_model_seed_and_protocol(toy_mnist, task):
    def modules():
        for model, seed, protocol in (("fcn", 0, "smoke"), ("st_fcn_affine", 3, "quick"), ("fcn", 1, "paper")):
            yield build(compose_run([f"task={task}", f"model={model}", f"seed={seed}", f"protocol={protocol}"])).module

    batches = []
    for i, module in enumerate(modules()):
        torch.manual_seed(i)
        images, labels, *_ = module.stream.test_batch(draw=0, start=0)
        batches.append(images)
        assert torch.equal(labels, toy_mnist["test"].labels)
    assert torch.equal(batches[0], batches[1])
    assert torch.equal(batches[0], batches[2])
    assert not torch.equal(batches[0], module.stream.test_batch(draw=1, start=0).images)


def test_test_batches_cover_every_digit_under_every_draw_once(module_of):
    module = module_of(test_draws=3)
    n = module.stream.n_test
    seen = sorted(tuple(place) for place in module.test_dataloader())
    assert seen == [(draw, 0) for draw in range(3)]
    module.stream.test = Digits(torch.zeros(2500, 28, 28, dtype=torch.uint8), torch.zeros(2500))
    assert sorted(start for draw, start in module.test_dataloader() if draw == 2) == [0, 1000, 2000]
    assert module.test_batch_of(2345) == (2000, 345)
    assert n == 300


def test_heldout_never_reads_the_test_set_and_measures_on_digits_it_did_not_train_on(monkeypatch, settings_of):
    numbered = torch.arange(10_200)
    images = torch.zeros(len(numbered), 28, 28, dtype=torch.uint8)
    images[:, 0, 0], images[:, 0, 1] = numbered // 256, numbered % 256
    read = []

    def load(data_dir, split):
        read.append(split)
        return Digits(images, numbered % 10)

    monkeypatch.setattr("stn.families.mnist.load_mnist", load)
    module = build(settings_of("mnist_r", "fcn", "evaluate=heldout")).module
    assert read == ["train"]
    train, test = (
        d.images[:, 0, 0].int() * 256 + d.images[:, 0, 1].int() for d in (module.stream.train, module.stream.test)
    )
    assert train.tolist() == list(range(200))
    assert test.tolist() == list(range(200, 10_200))


def test_bf16_rounds_the_classifier_and_leaves_grid_and_sampler_alone(toy_mnist, settings_of):
    seen = {}
    settings = settings_of("mnist_r", "st_fcn_affine", steps=10, batch_size=4)
    for precision in ("float32", "bf16"):
        module = build(settings).module
        module.precision = precision
        dtypes = seen.setdefault(precision, {})
        transformer = module.net.transformers[0]
        transformer.register_forward_hook(lambda _, __, out, dtypes=dtypes: dtypes.update(sampled=out.dtype))
        module.net.classifier[1].register_forward_hook(lambda _, __, out, dtypes=dtypes: dtypes.update(fc=out.dtype))
        fit(module)
        dtypes["loss"] = module.curve["train/loss"][0]
        assert all(p.dtype == torch.float32 for p in module.net.parameters())
    assert (seen["float32"]["sampled"], seen["float32"]["fc"]) == (torch.float32, torch.float32)
    assert (seen["bf16"]["sampled"], seen["bf16"]["fc"]) == (torch.float32, torch.bfloat16)
    assert 0 < abs(seen["bf16"]["loss"] - seen["float32"]["loss"]) < 0.1


def test_tf32_ends_with_the_training_that_asked_for_it(toy_mnist, settings_of, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # torch's default
    module = build(settings_of("mnist_r", "fcn", steps=10, batch_size=4)).module
    module.setup("fit")
    assert not torch.backends.cudnn.allow_tf32
    with computing("tf32", module.device):
        assert torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "highest"  # the grid is a matrix product
    module.setup("test")
    assert not torch.backends.cudnn.allow_tf32


def test_precision_belongs_to_the_settings_of_a_record_only_where_it_is_not_the_usual_one(settings_of):
    assert "precision" not in settings_of("mnist_r", "fcn").config
    assert settings_of("mnist_r", "fcn", "precision=bf16").config["precision"] == "bf16"


def test_a_warm_up_that_torch_would_divide_by_zero_for_is_refused():
    one_cycle = GOOD | {"schedule": {"name": "one_cycle", "warmup_fraction": 0.2}}
    checked(Recipe, one_cycle | {"steps": 5})
    with pytest.raises(ValueError, match=r"warmup_fraction 0\.2 of 4 steps"):
        checked(Recipe, one_cycle | {"steps": 4})
