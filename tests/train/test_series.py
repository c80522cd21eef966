"""Training steps as a CUDA graph: the steps that are taken one by one, whoever starts them."""

import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from stn.families import build
from stn.tasks.series import Series
from stn.train.run import train
from tests.tiny import MUON, SGD, STEP

CELLS = [("mnist_r", "st_fcn_affine"), ("mnist_e", "st_cnn_tps"), ("mnist_tc", "cnn"), ("addition", "fcn")]
OPTIMISERS = {"adamw": {}, "muon": {"optimiser": MUON}, "sgd": {"optimiser": SGD, "schedule": STEP | {"every": 70}}}
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def module_of(toy_mnist, settings_of):
    def make(task, model, *overrides, **recipe):
        recipe = {"steps": 160, "batch_size": 8, "label_smoothing": 0.1, "distortion_ramp": 0.9} | recipe
        run = settings_of(task, model, *overrides, **recipe)
        module = build(run).module
        module.precision = run.precision
        module.to("cuda" if run.device == "cuda" else "cpu")
        module.setup("fit")
        return module, *module.recipe.optimiser_of(module.net)

    return make


def chunks_of(module, optimiser, schedule, n):
    curve = []
    for _ in range(n):
        taken = module.series.train_chunk(optimiser, schedule)
        module.series.wait()
        metrics = module.end_chunk(*taken)
        curve.append((metrics["train/loss"], metrics["train/error_pct"]))
    return curve


def rates(optimiser):
    return [group["lr"] for group in optimiser.param_groups]


def set_rates(optimiser, numbers):
    for group, lr in zip(optimiser.param_groups, numbers, strict=True):
        group["lr"] = lr


@pytest.fixture
def imagined_graphs(monkeypatch):
    """Call it with a module on the CPU: it has a `series` with graphs, which take the steps that were captured. Returns
    the list of what each replay did.
    """
    idle = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: idle)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: idle)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **options: nullcontext())

    def here(module, optimiser=None):
        with monkeypatch.context() as patched:
            patched.setattr(type(module), "device", SimpleNamespace(type="cuda"))
            series = module.series = Series(module)
        series.device = torch.device("cpu")
        replayed = []

        def replay():
            if not replayed:
                replayed.append("as captured")  # which on the CPU takes the steps
                return
            usual, losses, logits = rates(optimiser), [], []
            for rate, images, labels in zip(series.rates, *series.drawn, strict=True):
                set_rates(optimiser, rate)
                ((loss, (of_step, _)),) = series._steps((images[None], labels[None]), optimiser)
                losses.append(loss)
                logits.append(of_step)
            set_rates(optimiser, usual)
            series.losses.copy_(torch.stack(losses))
            series.logits.copy_(torch.cat(logits))
            replayed.append("again")

        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=replay))
        return replayed

    return here


@pytest.mark.parametrize("length", [50, 25])
@pytest.mark.parametrize(
    ("task", "model", "optimiser"),
    [*((*cell, optimiser) for cell in CELLS for optimiser in ("adamw", "sgd")), ("addition", "fcn", "muon")],
)
def test_a_series_takes_the_steps_of_its_images_at_their_rates(
    monkeypatch, imagined_graphs, module_of, task, model, optimiser, length
):
    ours, of_ours, its_schedule = module_of(task, model, **OPTIMISERS[optimiser])
    same, of_same, other = module_of(task, model, **OPTIMISERS[optimiser])
    if optimiser == "muon":  # it lifts rounding to whole steps in directions that a batch of eight does not have
        for module in (ours, same):
            module.net.double().register_forward_pre_hook(lambda net, images: images[0].double())
    monkeypatch.setattr("stn.tasks.series.DRAWN_NUMBERS", length * 8 * math.prod(ours.stream.shape))
    replayed = imagined_graphs(ours, of_ours)
    curve = chunks_of(ours, of_ours, its_schedule, 3)
    assert len(replayed) == 2 * 50 // length
    for chunk in range(3):
        losses, wrong = [], []
        same.begin_chunk()
        for _ in range(50 // length):
            batch = same.stream.draw(length * 8, same.generator)
            for step in range(length):
                same.drawn = type(batch)(batch.images[8 * step :][:8], batch.labels[8 * step :][:8])
                loss, (logits, labels) = same.batch_loss()
                same.update(of_same, loss)
                other.step()
                losses.append(loss.item())
                wrong += (logits.argmax(-1) != labels).tolist()
        same.steps_done += 50
        assert curve[chunk][0] == pytest.approx(sum(losses) / 50, rel=1e-3)
        assert curve[chunk][1] == pytest.approx(100 * sum(wrong) / len(wrong), abs=0.3)
    assert rates(of_ours) == rates(of_same)
    for a, b in zip(ours.net.parameters(), same.net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=2e-3)


def test_a_series_lasts_as_long_as_the_training(monkeypatch, module_of):
    module, *_ = module_of("mnist_r", "fcn")
    made = []
    monkeypatch.setattr("stn.tasks.classification.Series", lambda of: made.append(of) or "series")
    for stage, series in (("fit", "series"), ("test", None)):
        with monkeypatch.context() as patched:
            patched.setattr(type(module), "device", SimpleNamespace(type="cuda"))
            patched.setattr(torch, "Generator", lambda device: None)
            patched.setattr(module.stream, "to", lambda device: None)
            module.setup(stage)
        assert module.series == series
        module.teardown(stage)
        assert module.series is None
    assert made == [module]


@pytest.mark.parametrize(("numbers", "series"), [(2**24, 50), (8 * 784 * 30, 25), (8 * 784, 1), (1, 1)])
def test_a_chunk_is_drawn_in_series_of_one_length(monkeypatch, imagined_graphs, module_of, numbers, series):
    monkeypatch.setattr("stn.tasks.series.DRAWN_NUMBERS", numbers)
    module, *_ = module_of("mnist_r", "fcn")
    imagined_graphs(module)
    assert module.series.length == series


@needs_cuda
@pytest.mark.parametrize("length", [50, 25])
@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize(("task", "model"), CELLS)
def test_a_graph_takes_the_steps_that_are_taken_step_by_step(
    monkeypatch, module_of, task, model, optimiser, precision, length
):
    options = ("device=cuda", f"precision={precision}")
    graphed = module_of(task, model, *options, **OPTIMISERS[optimiser])
    size = 8 * math.prod(graphed[0].stream.shape)
    monkeypatch.setattr("stn.tasks.series.DRAWN_NUMBERS", length * size)
    graphed[0].setup("fit")
    curve = chunks_of(*graphed, 4)
    assert graphed[0].series.graph is not None
    monkeypatch.setattr(Series, "_replay", Series._step_by_step)
    single = module_of(task, model, *options, **OPTIMISERS[optimiser])
    # Rounding, in another order, grows from step to step; an error of a percent is four images of a chunk.
    for (loss, error), (its_loss, its_error) in zip(curve, chunks_of(*single, 4), strict=True):
        assert loss == pytest.approx(its_loss, rel=0.05)
        assert error == pytest.approx(its_error, abs=4)
    assert rates(graphed[1]) == rates(single[1])
    assert graphed[0].steps_done == 160


@needs_cuda
def test_what_stands_in_a_stack_is_what_trains_alone(toy_mnist, settings_of):
    def runs(folder):
        made = [settings_of(task, model, "device=cuda", steps=160, batch_size=8) for task, model in CELLS]
        return [run.changed(results_dir=run.results_dir / folder, output_dir=run.output_dir / folder) for run in made]

    together = train(runs("together"))
    alone = [record for run in runs("alone") for record in train([run])]
    for one, other in zip(together, alone, strict=True):
        assert one["curve"]["train/loss"] == pytest.approx(other["curve"]["train/loss"], rel=0.05)
        assert one["metrics"]["test/loss"] == pytest.approx(other["metrics"]["test/loss"], rel=0.1)
