"""Whatever a setting is set to, there is a run, or one line that says why not."""

import copy

import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from experiments.cli import explain
from experiments.config import CONF, compose_run
from stn.data.distortions import distortion
from stn.families import mnist, network
from stn.results.tables import load_table
from stn.settings import run_settings

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.floats(-3, 40),
    st.sampled_from([float("nan"), float("inf"), "../up", "a/b", "null", "\0", "1", [], {}, [1, 2], [[]], {"name": 1}]),
    st.text(max_size=4),
    st.lists(st.integers(-1, 3), max_size=3),
)
ALL_CHECKS_OFF = settings(suppress_health_check=list(HealthCheck))


def places(node: dict, above: tuple = ()) -> list[tuple]:
    """Every key below a node, as the path that leads to it."""
    found = [(*above, key) for key in node]
    return found + [
        place for key, value in node.items() if isinstance(value, dict) for place in places(value, (*above, key))
    ]


def put(node: dict, place: tuple, value: object) -> dict:
    changed = copy.deepcopy(node)
    at = changed
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    return changed


CELLS = (("mnist_rts", "fcn"), ("mnist_e", "st_cnn_tps"), ("svhn_64", "svhn_st_multi"), ("mnist3d", "st3d_cnn"))


@pytest.fixture(scope="module")
def cells() -> dict[tuple, dict]:
    """The settings of runs, as nested dicts."""
    return {cell: compose_run([f"task={cell[0]}", f"model={cell[1]}", "protocol=smoke"]).model_dump() for cell in CELLS}


def line_or_none(call, *arguments) -> str | None:
    """The line that a user reads when `call` raises; None when it does not."""
    try:
        call(*arguments)
    except Exception as error:
        line = explain(error)
        if line is None:
            raise  # taken for a bug
    else:
        return None
    assert line.strip() == line != ""
    assert "\n" not in line
    return line


@pytest.mark.filterwarnings("ignore")  # of layers without units
@ALL_CHECKS_OFF
@given(data=st.data())
def test_a_changed_setting_makes_a_run_or_a_line(cells, monkeypatch, data):
    def use(changed):
        run = run_settings(changed)
        assert run.hash
        assert run.record_file.is_relative_to(run.results_dir)
        assert run.folder.is_relative_to(run.output_dir)
        network(run)
        if "distortion" in run.task.model_dump():
            distortion(**run.task.distortion)(torch.zeros(2, 28, 28, dtype=torch.uint8), torch.Generator())

    # The solver of the widths takes most of a second, and is tested elsewhere.
    monkeypatch.setattr(mnist, "build_within_budget", lambda build, _: (build((8, 8)), (8, 8)))
    cell = cells[data.draw(st.sampled_from(CELLS))]
    place = data.draw(st.sampled_from(places(cell)))
    line_or_none(use, put(cell, place, data.draw(JUNK)))


@pytest.mark.parametrize(
    ("cell", "place", "value", "line"),
    [
        (CELLS[0], ("wandb",), {"name": 1}, "missing key 'wandb.mode'"),
        (CELLS[0], ("trainer",), {"devices": 1}, "missing key 'trainer.num_nodes'"),
        (CELLS[0], ("recipe",), None, "recipe must be a mapping, got None"),
        (CELLS[1], ("model", "transformation"), False, "model.transformation must be a text, got False"),
        (CELLS[1], ("model", "localisation"), None, "model.localisation must be one of .*, got None"),
    ],
)
def test_the_line_names_the_setting(cells, cell, place, value, line):
    changed = put(cells[cell], place, value)

    def use():
        network(run_settings(changed))

    with pytest.raises(ValueError, match=line):
        use()


@ALL_CHECKS_OFF
@example(["seed", "="])
@example(["{", "}"])
@given(
    st.lists(
        st.sampled_from([*"=+~{}[]:,.'\"$\\@%#!&*| \n\té0a", "seed", "task", "mnist_r", "protocol.mnist.steps"]),
        max_size=8,
    )
)
def test_any_text_as_an_override_is_one_or_a_line(pieces):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    line_or_none(OverridesParser.create().parse_override, "".join(pieces))


def test_a_changed_table_file_is_a_table_or_a_line(tmp_path):
    name = "table3"
    content = yaml.safe_load((CONF / "table" / f"{name}.yaml").read_text())

    @ALL_CHECKS_OFF
    @given(data=st.data())
    def changed(data):
        place = data.draw(st.sampled_from(places(content)))
        text = yaml.safe_dump(put(content, place, data.draw(JUNK)), allow_unicode=True)
        if data.draw(st.booleans()):  # and torn
            text = text[: data.draw(st.integers(0, len(text)))]
        (tmp_path / f"{name}.yaml").write_text(text)
        line_or_none(load_table, tmp_path / f"{name}.yaml")

    changed()
