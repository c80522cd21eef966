"""A search never sees the test set, loses nothing when it is interrupted, and makes up no numbers."""

import inspect
import re
from types import SimpleNamespace

import pandas as pd
import pytest
from rich.console import Console

from experiments import sweep
from experiments.cli import explain
from experiments.config import compose_config, compose_run, options
from stn.families import network
from stn.many.pool import Finished
from stn.results.records import read_record

optuna = pytest.importorskip("optuna")

from stn.many import search as searching  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


@pytest.fixture
def call(monkeypatch, capsys, toy_mnist, tmp_path):
    """Call it with overrides: searches here, one job after the other; returns what it said."""
    monkeypatch.setattr("stn.families.mnist.holdout", lambda train: (train, toy_mnist["test"]))
    monkeypatch.setattr("stn.families.mnist.prepare_mnist", lambda data_dir: None)
    monkeypatch.setattr("stn.tasks.classification.GUESSING_MARGIN", -10)
    monkeypatch.setattr(sweep, "console", Console(width=300, highlight=False))

    def one_by_one(jobs, workers, deadline, launcher, function):
        for index, job in enumerate(jobs):
            try:
                yield Finished(index, function(job, deadline, None), None)
            except Exception as error:
                yield Finished(index, None, error)

    monkeypatch.setattr("stn.many.executors.launch", one_by_one)
    common = ["sweep=localiser", "protocol=smoke", "task=mnist_r", "model=st_fcn_affine", "device=cpu"]
    common += ["protocol.mnist.steps=100", "protocol.mnist.batch_size=4", "sweep.trials=2"]
    common += [f"results_dir={tmp_path / 'results'}", f"output_dir={tmp_path / 'outputs'}"]

    def once(*more):
        try:
            inspect.unwrap(sweep.sweep)(compose_config("sweep", [*common, *more]))
        finally:
            once.said = capsys.readouterr().out
        return once.said

    return once


@pytest.fixture
def trials(tmp_path):
    """Call it: the trials of the one study there is."""

    def found():
        storage = f"sqlite:///{tmp_path / 'outputs' / 'sweeps.db'}"
        (name,) = optuna.get_all_study_names(storage)
        return optuna.load_study(study_name=name, storage=storage).trials

    return found


def records(tmp_path):
    return [read_record(path) for path in sorted((tmp_path / "results").rglob("seed*.json"))]


def states(trials):
    return [trial.state.name for trial in trials]


def test_every_trial_is_a_run_with_a_record_and_the_table_says_what_these_say(call, tmp_path):
    said = call("sweep.trials=3")
    found = records(tmp_path)
    assert len(found) == 3
    assert not (tmp_path / "results" / "runs").exists()  # where the tables look
    (folder,) = (tmp_path / "results" / "sweeps" / "studies").iterdir()
    table = pd.read_csv(folder / "trials.csv")
    for record in found:
        recipe = record["config"]["recipe"]
        (row,) = table[table["optimiser.lr"].sub(recipe["optimiser"]["lr"]).abs() < 1e-12].to_dict("records")
        assert row["held-out error, %"] == pytest.approx(record["metrics"]["heldout/error_pct"])
        assert row["localiser_lr_multiplier"] == pytest.approx(recipe["localiser_lr_multiplier"])
        assert 0.001 <= recipe["optimiser"]["lr"] <= 0.02
        assert record["config"]["evaluate"] == "heldout"
    assert table["held-out error, %"].is_monotonic_increasing
    assert {path.name for path in folder.iterdir()} >= {"trials.md", "trials.csv"}
    for plot in ("parallel_coordinate.png", "importances.png"):
        assert (folder / plot).read_bytes().startswith(b"\x89PNG")
    command = re.search(r"experiments.train (.*)", said)[1].split()
    best = min(found, key=lambda record: record["metrics"]["heldout/error_pct"])
    assert compose_run(command).config["recipe"] == best["config"]["recipe"]
    assert compose_run(command).evaluate == "test"


def test_the_command_of_the_best_and_the_trials_notes_say_all_that_was_searched_with(call, tmp_path):
    changed = ["task.distortion.rotation_deg=30", "model.localisation=fc", "+wandb.config.purpose=demo"]
    said = call("sweep.trials=1", *changed)
    (record,) = records(tmp_path)
    best = compose_run(re.search(r"experiments.train (.*)", said)[1].split())
    assert best.task.distortion["rotation_deg"] == 30
    assert best.config | {"evaluate": "heldout"} == record["config"] | {
        "protocol_note": best.protocol_note,
        "seed": best.seed,
    }
    assert "rotation_deg=30" in record["config"]["protocol_note"]


def test_a_whole_number_of_a_setting_that_may_have_others_is_searched_as_one(call, trials):
    call("sweep.trials=2", "protocol.mnist.localiser_lr_multiplier=1")
    assert all(isinstance(trial.params["localiser_lr_multiplier"], float) for trial in trials())


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("sweep.trials=abc", "sweep.trials must be an integer, 1 or more, got 'abc'"),
        ("sweep.space=null", "sweep.space must name settings of the protocol, got None"),
        ("storage=foo", "storage must be a database's URL, as sqlite:///sweeps.db, got 'foo'"),
    ],
)
def test_a_search_that_cannot_be_is_refused(call, override, line):
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        call(override)


def test_a_finished_search_trains_nothing_and_a_longer_one_goes_on(call, trials, tmp_path):
    call("sweep.trials=1")
    before = records(tmp_path)
    assert "0 of 1 trials to do" in call("sweep.trials=1")
    assert "1 of 2 trials to do" in call("sweep.trials=2")
    assert states(trials()) == ["COMPLETE"] * 2
    assert trials()[0].params != trials()[1].params
    assert before[0] in records(tmp_path)


def test_an_interrupted_trial_is_taken_up_again(monkeypatch, call, trials, tmp_path):
    train = searching.train

    def killed(*arguments, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(searching, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        call()
    assert states(trials()) == ["RUNNING"]
    monkeypatch.setattr(searching, "train", train)
    assert "2 of 2 trials to do" in call()
    assert states(trials()) == ["FAIL"] + ["COMPLETE"] * 2
    assert trials()[1].params == trials()[0].params


def test_a_record_that_is_there_is_not_trained_again(monkeypatch, call, trials, tmp_path):
    tell = optuna.Study.tell

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(optuna.Study, "tell", killed)  # between the record and the database
    with pytest.raises(KeyboardInterrupt):
        call("sweep.trials=1")
    (record,) = records(tmp_path)
    monkeypatch.setattr(optuna.Study, "tell", tell)
    monkeypatch.setattr("stn.train.run.build", lambda run: pytest.fail("trained again"))
    call("sweep.trials=1")
    assert trials()[1].value == record["metrics"]["heldout/error_pct"]


def test_a_bad_trial_is_pruned_and_leaves_neither_record_nor_checkpoint(monkeypatch, call, trials, tmp_path):
    monkeypatch.setitem(searching.PRUNERS, "median", optuna.pruners.ThresholdPruner(upper=-1))
    assert "no trial is complete yet" in call()
    assert states(trials()) == ["PRUNED"] * 2
    assert [list(trial.intermediate_values) for trial in trials()] == [[searching.LOOKS // 2]] * 2  # step 50 of 100
    assert records(tmp_path) == []
    assert not list((tmp_path / "outputs").rglob("last.ckpt"))


@pytest.mark.parametrize("pruner", searching.PRUNERS)
def test_pruners_and_samplers_know_the_training_error(call, trials, pruner):
    call(f"sweep.pruner={pruner}", "sweep.sampler=random", "sweep.trials=1")
    (trial,) = trials()
    assert list(trial.intermediate_values) == [searching.LOOKS // 2]
    assert 0 < trial.intermediate_values[searching.LOOKS // 2] <= 100  # percent of wrong training images


def test_a_trial_that_is_done_stays_so_where_its_stack_is_pruned(monkeypatch, tmp_path):
    """A killed search may have written the record of one of them."""
    runs, record = [SimpleNamespace(folder=tmp_path / name) for name in "ab"], {"status": "ok"}

    def given_up(*_, **__):
        raise searching.Pruned("all of them")

    monkeypatch.setattr(searching, "train", given_up)
    monkeypatch.setattr(searching, "_done", lambda run: record if run is runs[0] else None)
    study = SimpleNamespace(study_name="study")
    assert searching._records(study, runs, [[], []], None, None) == [record, None]


def test_a_diverged_trial_has_no_error(call, trials, tmp_path):
    call("sweep.space.optimiser.lr.low=1e30", "sweep.space.optimiser.lr.high=1e31", "sweep.trials=1")
    (trial,) = trials()
    assert (trial.state.name, trial.value) == ("PRUNED", None)
    assert [record["status"] for record in records(tmp_path)] == ["diverged"]


def test_a_trial_that_raises_fails_is_named_and_replaced_by_the_next_call(monkeypatch, call, trials):
    train, calls = searching.train, []

    def first_fails(*arguments, **named):
        calls.append(arguments)
        if len(calls) == 1:
            raise RuntimeError("no\nroom")
        return train(*arguments, **named)

    monkeypatch.setattr(searching, "train", first_fails)
    with pytest.raises(SystemExit, match="a trial failed: RuntimeError: no room"):
        call("sweep.trials=2")
    assert states(trials()) == ["FAIL", "COMPLETE"]
    call("sweep.trials=2")
    assert states(trials()) == ["FAIL", "COMPLETE", "COMPLETE"]


def test_trials_that_can_share_a_program_do(monkeypatch, call, trials, tmp_path):
    train, together = searching.train, []

    def counted(stack, *arguments, **named):
        together.append(len(stack))
        return train(stack, *arguments, **named)

    monkeypatch.setattr(searching, "train", counted)
    call("stack=true")
    assert together == [2]
    found = {
        record["config"]["recipe"]["optimiser"]["lr"]: record["metrics"]["heldout/error_pct"]
        for record in records(tmp_path)
    }
    assert {trial.params["optimiser.lr"]: trial.value for trial in trials()} == found
    assert len(found) == 2


def test_trials_that_cannot_share_a_program_are_asked_for_one_by_one(monkeypatch, call, trials):
    asked, run_trials = [], searching.run_trials
    monkeypatch.setattr(searching, "run_trials", lambda job, *more: asked.append(job.trials) or run_trials(job, *more))
    call("stack=true", "+sweep.space.steps=[2,4]")
    assert asked == [1, 1]


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("evaluate=test", "never sees the test set: evaluate must be heldout, got 'test'"),
        ("sweep.sampler=grid", "sweep.sampler must be one of tpe, random, got 'grid'"),
        ("sweep.pruner=all", "sweep.pruner must be one of none, median, hyperband, got 'all'"),
        ("+sweep.space.rate=[1]", "sweep.space.rate: no such setting in the protocol; allowed: antialias"),
        ("+sweep.space.steps=[]", "sweep.space.steps must be a list of values or {low, high, log}"),
        ("sweep.space.optimiser.lr.low=1", "low < high, got {'low': 1, 'high': 0.02"),
        ("sweep.space.optimiser.lr.low=0", "sweep.space.optimiser.lr must be"),  # of a logarithm
        ("sweep.space={}", "sweep.space is empty"),
        ("stack=often", "stack must be one of auto, True, False, got 'often'"),
        ("task=mnist_r model=fcn protocol.mnist.batch_size=0", "protocol.mnist.batch_size"),
    ],
)
def test_a_search_that_cannot_be_is_refused_in_a_line(call, tmp_path, override, named):
    if override == "sweep.space={}":
        override = "~sweep.space.optimiser ~sweep.space.localiser_lr_multiplier ~sweep.space.schedule"
    with pytest.raises(ValueError, match=re.escape(named)) as error:
        call(*override.split())
    assert "\n" not in str(error.value)
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("name", options("sweep"))
def test_every_search_of_conf_can_be_run(name):
    wanted = compose_config("sweep", [f"sweep={name}", "device=cpu"])
    assert wanted.sweep.name == name
    assert wanted.evaluate == "heldout"
    search = sweep._search(wanted)
    searching.check(search)
    network(search.run)
    for values in search.space.values():
        assert isinstance(values, list) or values["low"] < values["high"]


def test_the_name_of_a_study_changes_with_what_would_change_its_numbers():
    def name(*overrides):
        return sweep._search(compose_config("sweep", ["sweep=localiser", "device=cpu", *overrides])).study

    numbers = ["seed=1", "task=mnist_r", "model=cnn", "protocol.mnist.steps=9", "sweep.space.optimiser.lr.high=0.5"]
    others = ["workers=9", "sweep.trials=99", "launcher=ray", "sweep.pruner=none", "progress=true", "protocol_note=x"]
    assert len({name(), *map(name, numbers)}) == 1 + len(numbers)
    assert {name(), *map(name, others)} == {name()}


def test_an_unknown_setting_is_compared_with_those_of_a_search():
    with pytest.raises(Exception) as error:  # noqa: PT011, hydra's own
        compose_config("sweep", ["sweep=localiser", "wrkers=3"])
    assert "did you mean workers?" in explain(error.value, "sweep")
