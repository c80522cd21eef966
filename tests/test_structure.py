"""Which way imports may go, and how deep a run goes: what keeps the house simple."""

import ast
import traceback
from pathlib import Path

import pytest

from experiments import train as verb
from experiments.cli import main
from stn.tasks import classification

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "stn"

# Each part of src/stn -> what it may import of the others.
ALLOWED = {
    "validation": set(),
    "progress": set(),
    "transform": set(),
    "nets": {"transform"},
    "data": {"progress", "transform"},
    "saved": {"data"},
    "results": {"validation"},
    "settings": {"validation", "results"},
    "tasks": {"validation", "results", "transform", "nets", "data"},
    "families": {"validation", "settings", "results", "saved", "transform", "nets", "data", "tasks"},
    "trained": {"settings", "results", "saved", "data", "families"},
    "watch": {"settings", "results", "saved", "transform", "nets", "data", "tasks", "trained"},
    "train": {"settings", "results", "saved", "transform", "nets", "data", "tasks", "families", "trained", "watch"},
    "bench": {"settings", "nets", "data", "transform", "tasks", "families", "train"},
    "many": {"settings", "results", "nets", "families", "train"},
}
NO_TORCH = ("validation", "results", "settings")


def imports_of(path: Path) -> set[str]:
    """The modules that a file imports, those inside functions, too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part_of(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


FILES = [path for path in sorted(SRC.rglob("*.py")) if path.parent != SRC or path.name != "__init__.py"]


def test_every_part_has_its_place():
    assert {part_of(path) for path in FILES} == ALLOWED.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_imports_go_one_way(path):
    names = imports_of(path)
    others = {name.split(".")[1] for name in names if name.startswith("stn.")} - {part_of(path)}
    assert others <= ALLOWED[part_of(path)]
    assert not any(name.startswith(("experiments", "tests")) for name in names)
    if part_of(path) in NO_TORCH:
        assert not {"torch", "torchvision", "pytorch_lightning"} & {name.split(".")[0] for name in names}


def test_no_parts_and_no_files_import_each_other_in_a_circle():
    modules = {".".join(("stn", *path.relative_to(SRC).with_suffix("").parts)): path for path in FILES}
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items()}
    graph = {name: imports_of(path) & modules.keys() - {name} for name, path in modules.items()}
    for needs in (graph, ALLOWED):
        left = dict(needs)
        while left:
            free = {name for name, needed in left.items() if not needed & left.keys()}
            assert free, f"a circle among {sorted(left)}"
            left = {name: needed for name, needed in left.items() if name not in free}


def test_the_results_can_be_read_without_torch():
    for name in ("records", "spec", "tables", "statistics"):
        assert "torch" not in imports_of(SRC / "results" / f"{name}.py")


def test_few_frames_of_our_own_lie_between_the_command_line_and_the_loss(monkeypatch, toy_mnist, tmp_path):
    frames = []

    def loss(logits, labels, smoothing=0.0):
        if not frames:
            frames.extend(frame.filename for frame in traceback.extract_stack())
        return computed(logits, labels, smoothing)

    computed = classification.cross_entropy
    monkeypatch.setattr(classification, "cross_entropy", loss)
    places = [f"results_dir={tmp_path}", f"output_dir={tmp_path}", "device=cpu", "progress=false"]
    monkeypatch.setattr("sys.argv", ["train", "task=mnist_r", "model=fcn", "protocol=smoke", *places])
    main(verb.train)
    own = [name for name in frames if Path(name).is_relative_to(SRC) or Path(name).is_relative_to(ROOT / "experiments")]
    assert len(own) + 1 <= 6, own  # and the loss itself
