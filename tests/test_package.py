"""The wheel, installed where there is torch and nothing else of what the suite needs."""

import re
import subprocess
import sys
import zipfile
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
SUITE = ("torchvision", "pytorch_lightning", "hydra", "omegaconf", "wandb", "pandas", "numpy", "scipy", "PIL", "h5py")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: setuptools leaves folders beside what it builds."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    subprocess.run(
        ["cp", "-r", *(ROOT / n for n in ("src", "pyproject.toml", "README.md", "LICENSE")), copy], check=True
    )
    build = "import setuptools.build_meta as backend, sys; backend.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-W", "ignore", "-c", build, out], cwd=copy, check=True, capture_output=True)
    (wheel,) = out.glob("*.whl")
    return wheel


def needed_by(name: str, found: dict[str, Distribution]) -> dict[str, Distribution]:
    """The distributions that pip would install for this one: itself and what it requires here, without extras."""
    try:
        dist = distribution(name)
    except PackageNotFoundError:  # torch runs without: one of another platform's build, or left out by the installer
        return found
    found[name] = dist
    for requirement in map(Requirement, dist.requires or ()):
        if requirement.name not in found and (not requirement.marker or requirement.marker.evaluate({"extra": ""})):
            needed_by(requirement.name, found)
    return found


@pytest.fixture(scope="module")
def empty_environment(wheel, tmp_path_factory) -> Path:
    """A virtual environment of the wheel, torch and what torch requires, and nothing else.

    They are links to the files of this environment's distributions, one by one by their names: torch has gigabytes.
    """
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for dist in needed_by("torch", {}).values():
        for top in {file.parts[0] for file in dist.files if ".." not in file.parts and file.parts[0] != "__pycache__"}:
            link = packages / top
            if not link.exists():  # several distributions share the folder `nvidia`
                link.symlink_to(dist.locate_file(top))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    return folder / "bin" / "python"


def run(python: Path, script: str) -> str:
    done = subprocess.run(
        [python, "-I", "-W", "ignore", "-c", script], capture_output=True, text=True, cwd=python.parent
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_has_the_package_with_its_types_and_data_and_nothing_besides(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith("/METADATA"))
        assert not [name for name in names if name.endswith("entry_points.txt")]
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"stn"}
    sources = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src" / "stn").rglob("*") if path.is_file()}
    assert {n for n in names if n.startswith("stn/")} == {s for s in sources if "__pycache__" not in s}
    assert "stn/py.typed" in names
    required = re.findall(r"^Requires-Dist: ([\w-]+)([^;\n]*)$", metadata, flags=re.MULTILINE)
    assert required == [("torch", ">=2.4")]
    assert "Provides-Extra: suite" in metadata


def test_readmes_snippet_runs_where_there_is_torch_alone(empty_environment):
    (snippet,) = re.findall(
        r"```python\n(.*?from stn\.transform import.*?)```", (ROOT / "README.md").read_text(), re.DOTALL
    )
    after = """
import sys
assert warped.shape == (8, 1, 28, 28) and image.shape == warped.shape
import stn
assert stn.__file__.startswith(sys.prefix)
print(*sorted({name.split(".")[0] for name in sys.modules}))
"""
    loaded = run(empty_environment, snippet + after).split()
    assert {"stn", "torch"} <= set(loaded)
    assert not set(SUITE) & set(loaded)


@pytest.mark.parametrize("name", SUITE)
def test_the_environment_is_as_empty_as_it_says(empty_environment, name):
    """Else the test before would show nothing."""
    assert "False" in run(
        empty_environment, f"import importlib.util; print(importlib.util.find_spec({name!r}) is not None)"
    )
