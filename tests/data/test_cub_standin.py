import numpy as np
import pytest
from PIL import Image, ImageDraw

from stn.data import cub_standin
from stn.data.cub import load_cub, prepare_cub
from stn.data.cub_annotations import read_annotations
from stn.data.cub_standin import species, write_standin
from stn.data.cub_standin_drawing import (
    PART_NAMES,
    PLUMAGES,
    bird_shapes,
    box_of,
    draw_picture,
    random_pose,
)
from stn.data.cub_standin_scene import SUPERSAMPLING
from stn.data.errors import DataError

MARKS = species(20, 0)


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_same_arguments_give_the_same_bytes_and_another_seed_others(tmp_path):
    one, same, other = (
        contents(write_standin(tmp_path / name, 2, 3, seed=seed, size_px=48))
        for name, seed in (("one", 0), ("same", 0), ("other", 1))
    )
    assert one == same
    images = [name for name in one if name.suffix == ".jpg"]
    assert len(images) == 6
    assert all(one[name] != other[name] for name in images)


def test_it_reads_as_cub_and_half_of_each_class_is_for_training(tmp_path):
    a = read_annotations(write_standin(tmp_path, 5, 8, seed=0, size_px=64))
    assert a.source == "standin"
    assert a.part_names == PART_NAMES
    np.testing.assert_array_equal(np.bincount(a.labels), [8] * 5)
    np.testing.assert_array_equal(np.bincount(a.labels[a.is_train]), [4] * 5)
    prepare_cub(tmp_path, 40)
    assert load_cub(tmp_path, "test", 40).source == "standin"


def test_what_is_there_is_kept_and_never_replaced(tmp_path, monkeypatch):
    root = write_standin(tmp_path, 2, 2, size_px=48)
    monkeypatch.setattr(cub_standin, "_write", None)
    assert write_standin(tmp_path, 2, 2, size_px=48) == root
    with pytest.raises(DataError, match="not the stand-in"):
        write_standin(tmp_path, 2, 3, size_px=48)
    (root / "standin.json").unlink()
    with pytest.raises(DataError, match="holds something else"):
        write_standin(tmp_path, 2, 2, size_px=48)


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cub_standin.drawing, "draw_picture", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_standin(tmp_path, 2, 2, size_px=48)
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_folder_and_nonsense_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        write_standin(tmp_path / "file", 2, 2, size_px=48)
    for arguments in ((1, 4), (201, 4), (3, 1)):
        with pytest.raises(ValueError, match="must be"):
            write_standin(tmp_path, *arguments)


def test_some_images_have_no_colour(tmp_path, monkeypatch):
    monkeypatch.setattr(cub_standin, "GREY_SHARE", 0.5)
    modes = set()
    for path in write_standin(tmp_path, 2, 6, size_px=48).rglob("*.jpg"):
        with Image.open(path) as image:
            modes.add(image.mode)
    assert modes == {"L", "RGB"}


def test_no_two_classes_are_alike_and_none_is_told_by_its_head_or_body_alone():
    for n in (2, 9, 20, 200):
        kinds = species(n, 3)
        assert len({(k.head, k.body) for k in kinds}) == n
        assert len({k.name for k in kinds}) == n
    heads = [sum(other.head == kind.head for other in MARKS) for kind in MARKS]
    bodies = [sum(other.body == kind.body for other in MARKS) for kind in MARKS]
    assert min(heads) == 4
    assert min(bodies) == 5


@pytest.mark.parametrize("seed", range(12))
def test_the_box_is_the_birds_silhouette(seed):
    size_px, rng = (150, 120), np.random.default_rng(seed)
    pose = random_pose(size_px, rng)
    shapes = bird_shapes(MARKS[seed].head, MARKS[seed].body, PLUMAGES[0], pose, rng)
    canvas = Image.new("L", (size_px[0] * SUPERSAMPLING, size_px[1] * SUPERSAMPLING))
    for points, _ in shapes:
        ImageDraw.Draw(canvas).polygon((points * SUPERSAMPLING - 0.5).ravel().tolist(), fill=255)
    wanted = np.array(canvas.getbbox()) / SUPERSAMPLING
    x, y, width, height = box_of(shapes, size_px)
    np.testing.assert_allclose([x, y, x + width, y + height], wanted, atol=1)


def test_visible_parts_lie_on_the_bird_and_the_eye_is_where_it_is_said_to_be():
    seen, dark, left = np.zeros(15), [], []
    for seed in range(40):
        kind = MARKS[seed % 20]
        picture = draw_picture(kind.head, kind.body, (200, 160), np.random.default_rng(seed))
        x0, y0, width, height = picture.box_px
        x, y = picture.parts[picture.parts[:, 2] > 0, :2].T
        assert ((x >= x0 - 1) & (x <= x0 + width + 1) & (y >= y0 - 1) & (y <= y0 + height + 1)).all()
        assert (picture.parts[picture.parts[:, 2] == 0] == 0).all()
        seen += picture.parts[:, 2]
        eyes = picture.parts[[PART_NAMES.index("left eye"), PART_NAMES.index("right eye")]]
        assert eyes[:, 2].sum() <= 1
        for eye in eyes[eyes[:, 2] > 0]:
            dark.append(picture.image[min(int(eye[1]), 159), min(int(eye[0]), 199)].mean())
        beak, tail = (picture.parts[PART_NAMES.index(name)] for name in ("beak", "tail"))
        if beak[2] and tail[2] and eyes[:, 2].any():
            left.append((beak[0] < tail[0]) == bool(eyes[0, 2]))
    assert np.mean(np.array(dark) < 60) > 0.95
    assert all(left)
    assert len(left) > 20
    assert (seen > 5).all()
    assert (seen < 40).sum() > 10
