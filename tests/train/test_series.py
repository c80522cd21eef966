"""Training steps as a CUDA graph: the steps that are taken one by one, whoever starts them."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from stn.families import build
from stn.tasks.series import Series
from stn.train.run import train
from tests.tiny import SGD, STEP

CELLS = [("mnist_r", "st_fcn_affine"), ("mnist_e", "st_cnn_tps"), ("mnist_tc", "cnn"), ("addition", "fcn")]
OPTIMISERS = {"adamw": {}, "sgd": {"optimiser": SGD, "schedule": STEP | {"every": 70}}}
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def module_of(toy_mnist, settings_of):
    def make(task, model, *overrides, **recipe):
        recipe = {"steps": 160, "batch_size": 8, "label_smoothing": 0.1, "distortion_ramp": 0.9} | recipe
        run = settings_of(task, model, *overrides, **recipe)
        module = build(run).module
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


@pytest.fixture
def imagined_graphs(monkeypatch):
    """Call it with a module on the CPU. What a graph captures happens while it is captured: it may be replayed once."""
    idle = SimpleNamespace(wait_stream=lambda other: None)
    replayed = []

    class Graph:
        def replay(self):
            assert self not in replayed
            replayed.append(self)

    def here(module):
        with monkeypatch.context() as patched:
            patched.setattr(type(module), "device", SimpleNamespace(type="cuda"))
            module.series = Series(module)
        module.series.device = torch.device("cpu")
        return replayed

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: idle)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: idle)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **options: nullcontext())
    return here


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize(("task", "model"), CELLS)
def test_a_series_takes_the_steps_of_its_images_at_their_rates(imagined_graphs, module_of, task, model, optimiser):
    ours, of_ours, its_schedule = module_of(task, model, **OPTIMISERS[optimiser])
    same, of_same, other = module_of(task, model, **OPTIMISERS[optimiser])
    replayed = imagined_graphs(ours)
    curve = chunks_of(ours, of_ours, its_schedule, 2)
    assert len(replayed) == 1
    for chunk in range(2):
        batch = same.stream.draw(same.begin_chunk() * 8, same.generator)
        losses = []
        for step in range(50):
            same.drawn = type(batch)(batch.images[8 * step :][:8], batch.labels[8 * step :][:8])
            loss, _ = same.batch_loss()
            same.update(of_same, loss)
            other.step()
            losses.append(loss.item())
        same.steps_done += 50
        assert curve[chunk][0] == pytest.approx(sum(losses) / 50, rel=1e-5)
    assert rates(of_ours) == rates(of_same)
    for a, b in zip(ours.net.parameters(), same.net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("numbers", "series"), [(2**26, 50), (8 * 784 * 30, 25), (8 * 784, 1), (1, 1)])
def test_a_chunk_is_drawn_in_series_of_one_length(monkeypatch, imagined_graphs, module_of, numbers, series):
    monkeypatch.setattr("stn.tasks.series.DRAWN_NUMBERS", numbers)
    module, *_ = module_of("mnist_r", "fcn")
    imagined_graphs(module)
    assert module.series.length == series


@needs_cuda
@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize(("task", "model"), CELLS)
def test_a_graph_takes_the_steps_that_are_taken_step_by_step(monkeypatch, module_of, task, model, optimiser):
    graphed = module_of(task, model, "device=cuda", **OPTIMISERS[optimiser])
    curve = chunks_of(*graphed, 4)
    assert graphed[0].series.graph is not None
    monkeypatch.setattr(Series, "_replay", Series._step_by_step)
    single = module_of(task, model, "device=cuda", **OPTIMISERS[optimiser])
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
        assert one["status"] != "failed"
        assert one["curve"]["train/loss"] == pytest.approx(other["curve"]["train/loss"], rel=1e-2)
