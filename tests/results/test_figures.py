"""Figures: the files are made, are the same twice, and the grid is where and how it should be."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from stn.results import figures, warp_figures
from stn.results.sheets import Layout, Panel, write_sheet
from stn.results.tables import load_table, table_cells
from stn.results.warp_figures import Warp


def identity_grid(size: int) -> np.ndarray:
    centres = (2 * np.arange(size) + 1) / size - 1
    return np.stack(np.meshgrid(centres, centres), axis=-1)


def rotated(grid: np.ndarray, degrees: float) -> np.ndarray:
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return grid @ np.array([[c, s], [-s, c]])


def warp(degrees: float = 0.0) -> Warp:
    image = np.zeros((28, 28))
    image[5:20, 8:12] = 1.0
    return Warp(image, rotated(identity_grid(28), degrees), image, f"{degrees:g}°")


def test_to_pixels_puts_the_identity_on_the_pixels():
    columns, rows = warp_figures.to_pixels(identity_grid(7), 7, 7)
    np.testing.assert_allclose(columns[0], np.arange(7), atol=1e-12)
    np.testing.assert_allclose(rows[:, 0], np.arange(7), atol=1e-12)
    corner = warp_figures.to_pixels(np.array([-1.0, 1.0]), 20, 10)  # left outer edge, bottom outer edge
    assert corner == (-0.5, 19.5)


@pytest.mark.parametrize(
    ("degrees", "side"), [(0, "top"), (90, "right"), (180, "bottom"), (-90, "left")]
)  # x to the right, y down: turning the grid by +90° takes its top to the right
def test_the_marked_edge_is_the_outputs_top(tmp_path, degrees, side):
    strokes = warp_figures.grid_strokes(rotated(identity_grid(28), degrees), (28, 28), 4)
    path = write_sheet(tmp_path / "grid.png", [[Panel(np.zeros((28, 28)), strokes, margin=1 / 6)]], "")
    pixels = imread(path)[-176:-6, 6:176, :3]  # the panel, 170 px wide
    orange = np.array([0xFF, 0x5A, 0x36]) / 255
    rows, columns = np.nonzero(np.abs(pixels - orange).max(axis=-1) < 0.1)
    assert len(rows) > 100
    centre = {"top": (0.13, 0.5), "bottom": (0.87, 0.5), "left": (0.5, 0.13), "right": (0.5, 0.87)}[side]
    # the outermost pixel centres lie (1/6 + 0.5/28) / (1 + 2/6) = 0.138 of the panel from its border
    assert (rows.mean() / 169, columns.mean() / 169) == pytest.approx(centre, abs=0.03)


@pytest.mark.parametrize("label", ["input", "st_cnn_projective\n17° of 52°", 3 * "st_cnn_projective"])
def test_a_label_is_on_the_sheet_whole(tmp_path, label):
    path = write_sheet(tmp_path / "sheet.png", [[Panel(np.zeros((28, 28)))] * 11], "", Layout([label]))
    dark = imread(path)[..., :3].min(-1) < 0.8
    inked = np.nonzero(dark.any(0))[0]
    assert inked[0] >= 3
    assert dark.shape[1] - inked[-1] >= 3
    panels = np.nonzero(dark.all(0) | (dark.mean(0) > 0.3))[0]
    assert inked[inked < panels[0]].max() < panels[0] - 3


def test_figures_are_made_and_repeat(tmp_path, record, small_table):
    digits = np.random.default_rng(0).random((6, 28, 28))
    cells = table_cells(load_table(small_table()), [record(), record(seed=1, wrong=60)], "fast")
    makers = {
        "gallery": lambda path: warp_figures.warp_gallery(path, [warp(d) for d in (0, 30, 60, 90)], "R"),
        "sheet": lambda path: warp_figures.distortion_sheet(path, digits, {"RTS": np.zeros((6, 42, 42))}),
        "curves": lambda path: figures.learning_curves(path, [record(), record("cnn")], "mnist_r"),
        "table": lambda path: figures.table_figure(path, cells),
    }
    for name, make in makers.items():
        first, second = make(tmp_path / "new" / f"{name}.png"), make(tmp_path / f"{name}.png")
        assert first == tmp_path / "new" / f"{name}.png"
        assert first.read_bytes() == second.read_bytes()
        height, width = imread(first).shape[:2]
        assert 850 <= width <= 950, name
        assert height > 100


def test_curves_skip_runs_without_one(tmp_path, record, bad):
    records = [bad(curve=None, seed=1), record("cnn", curve={"step": [0, 1], "train/loss": [1.0, None]})]
    assert figures.learning_curves(tmp_path / "curves.png", records, "mnist_r").exists()
    assert figures.learning_curves(tmp_path / "none.png", [], "mnist_r").exists()


def test_a_table_figure_of_nothing_but_gaps(tmp_path, small_table):
    cells = table_cells(load_table(small_table()), [], "fast")
    assert figures.table_figure(tmp_path / "gaps.png", cells).exists()
    assert isinstance(cells, pd.DataFrame)


def test_a_sheet_needs_as_many_images(tmp_path):
    with pytest.raises(ValueError, match="'R' has 2 images, the originals are 3"):
        warp_figures.distortion_sheet(tmp_path / "s.png", np.zeros((3, 4, 4)), {"R": np.zeros((2, 4, 4))})


def test_a_table_without_numbers_of_the_paper_shows_ours_and_what_is_missing(
    tmp_path, monkeypatch, small_table, record
):
    drawn = []
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.append(figure))
    nulls = [
        ("2.1, mnist_e: 3.2", "null, mnist_e: null"),
        ("1.2, mnist_e: 2.7", "null, mnist_e: null"),
        ("1.1", "null"),
    ]
    spec = load_table(small_table(*nulls))
    figures.table_figure(tmp_path / "table.png", table_cells(spec, [record()], "fast"))
    r, e = drawn[0].axes
    assert [text.get_text() for text in r.texts] == [text.get_text() for text in e.texts] == ["missing", "missing"]
    assert [list(line.get_xdata()) for line in r.lines if line.get_color() == figures.OURS][-1] == [5.0]
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["ours, mean ± 95 % interval"]
