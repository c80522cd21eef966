import hashlib
import json
import shutil
import tarfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from stn.data import cub, cub_annotations, cub_images, download
from stn.data.cub import Birds, center_crop, load_cub, prepare_cub, random_crop_flip
from stn.data.cub_annotations import FORMS, read_annotations
from stn.data.cub_standin import write_standin
from stn.data.errors import DataError

N_CLASSES, PER_CLASS, SIZE_PX = 3, 4, 48
N = N_CLASSES * PER_CLASS


@pytest.fixture(scope="session")
def standin(tmp_path_factory):
    return write_standin(tmp_path_factory.mktemp("cub"), N_CLASSES, PER_CLASS, seed=1, size_px=96)


@pytest.fixture
def root(standin, tmp_path):
    return shutil.copytree(standin, tmp_path / "data" / "CUB_200_2011")


@pytest.fixture(autouse=True)
def unreachable(monkeypatch):
    monkeypatch.setattr(cub, "ARCHIVE_URLS", ())


def edit(path, old, new):
    lines = path.read_text().splitlines()
    assert old in lines
    path.write_text("".join(f"{new if line == old else line}\n" for line in lines if (line, new) != (old, None)))


def table(path):
    return np.loadtxt(path, ndmin=2)


def test_annotations_say_what_the_files_say(root):
    a = read_annotations(root)
    boxes, locations = table(root / "bounding_boxes.txt"), table(root / "parts/part_locs.txt")
    np.testing.assert_allclose(a.boxes_px[:, :2], boxes[:, 1:3], rtol=1e-6)
    np.testing.assert_allclose(a.boxes_px[:, 2:], boxes[:, 1:3] + boxes[:, 3:5], rtol=1e-6)
    np.testing.assert_allclose(a.parts.reshape(-1, 3), locations[:, 2:], rtol=1e-6)
    np.testing.assert_array_equal(a.labels + 1, table(root / "image_class_labels.txt")[:, 1])
    np.testing.assert_array_equal(a.is_train, table(root / "train_test_split.txt")[:, 1] == 1)
    assert len(a.image_files) == N
    assert len(a.classes) == N_CLASSES
    assert a.part_names[6] == "left eye"
    assert a.source == "standin"
    assert all((root / "images" / file).is_file() for file in a.image_files)


def test_lines_may_come_in_any_order_with_blank_lines_and_windows_line_ends(root):
    before = read_annotations(root)
    for name in FORMS:
        path = root / name
        path.write_bytes("\r\n".join([*reversed(path.read_text().splitlines()), "", ""]).encode())
    after = read_annotations(root)
    assert after.image_files == before.image_files
    np.testing.assert_array_equal(after.parts, before.parts)
    np.testing.assert_array_equal(after.boxes_px, before.boxes_px)


@pytest.mark.parametrize("name", FORMS)
def test_a_missing_empty_or_binary_file_is_named(root, name):
    path = root / name
    content = path.read_bytes()
    for broken in (None, b"", b"\xff\xfe\x00"):
        path.unlink() if broken is None else path.write_bytes(broken)
        with pytest.raises(DataError, match=path.name) as error:
            read_annotations(root)
        assert "\n" not in str(error.value)
        path.write_bytes(content)


def first_line(root, name):
    return (root / name).read_text().splitlines()[0]


@pytest.mark.parametrize(
    ("name", "new", "message"),
    [
        ("images.txt", "1", "line 1: expected <image_id> <file>"),
        ("images.txt", "one a/b.jpg", "line 1.*'one' is no image_id"),
        ("images.txt", "1 ../secret.jpg", "image 1 .*not a file in a class folder"),
        ("images.txt", "1 /etc/passwd", "image 1 .*not a file in a class folder"),
        ("images.txt", "13 001.Standin_Bird_001/a.jpg", r"images.txt: .* ids are not each of 1\.\.12 .*not there: 1\)"),
        ("images.txt", "2 001.Standin_Bird_001/a.jpg", r"images.txt: .* ids are not each of 1\.\.12 .*not there: 1\)"),
        ("images.txt", "1 002.Standin_Bird_002/a.jpg", "image 1 is .*, but by image_class_labels.txt it is of class 1"),
        ("images.txt", "1 001.Standin_Bird_001/a.jpg", "a.jpg is missing"),
        ("image_class_labels.txt", "1 4", "image_class_labels.txt: image 1 is of class 4, of 3"),
        ("image_class_labels.txt", None, r"image_class_labels.txt: 11 lines.* 1\.\.12 .*not there: 1\)"),
        ("train_test_split.txt", "1 2", "line 1.*'2' is no is_train"),
        ("train_test_split.txt", "99 1", r"train_test_split.txt: .* ids are not each of 1\.\.12"),
        ("bounding_boxes.txt", "1 2 3 4", "line 1: expected <image_id> <x> <y> <width> <height>, got '1 2 3 4'"),
        ("bounding_boxes.txt", "1 2 3 0 5", "bounding_boxes.txt: the box of image 1 has no area"),
        ("bounding_boxes.txt", "1 2 3 nan 5", "line 1.*'nan' is no width"),
        ("bounding_boxes.txt", "1 2 3 1e9 5", "line 1.*'1e9' is no width"),
        ("classes.txt", "7 001.Standin_Bird_001", r"classes.txt: .* ids are not each of 1\.\.3"),
        ("parts/parts.txt", None, r"parts.txt: 14 lines, whose ids are not each of 1\.\.14"),
        ("parts/part_locs.txt", "1 1 5 5 2", "line 1.*'2' is no visible"),
        ("parts/part_locs.txt", "1 1.5 5 5 1", "line 1.*'1.5' is no part_id"),
        ("parts/part_locs.txt", "1 16 5 5 1", "part_locs.txt: .* ids are not each of"),
        ("parts/part_locs.txt", "1 2 5 5 1", "part_locs.txt: .* ids are not each of"),
        ("parts/part_locs.txt", None, "part_locs.txt: 179 lines, whose ids are not each of 1..180"),
    ],
)
def test_a_broken_line_is_refused_with_its_number(root, name, new, message):
    edit(root / name, first_line(root, name), new)
    with pytest.raises(DataError, match=message) as error:
        read_annotations(root)
    assert "\n" not in str(error.value)
    assert str(root) in str(error.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_whatever_is_in_the_files_there_is_an_answer_or_a_data_error(standin, tmp_path_factory, data):
    name = data.draw(st.sampled_from(list(FORMS)))
    original = (standin / name).read_bytes()
    at = data.draw(st.integers(0, len(original)))
    piece = data.draw(st.one_of(st.binary(max_size=6), st.sampled_from([b" ", b"\n", b"-1", b"9" * 30, b"inf", b"/"])))
    cut = data.draw(st.integers(0, 8))
    folder = tmp_path_factory.mktemp("fuzzed")
    for other in FORMS:
        (folder / other).parent.mkdir(exist_ok=True)
        (folder / other).write_bytes((standin / other).read_bytes())
    (folder / "standin.json").write_text("{}")
    (folder / "images").symlink_to(standin / "images")
    (folder / name).write_bytes(original[:at] + piece + original[at + cut :])
    message = ""
    try:
        read_annotations(folder)
    except DataError as error:
        message = str(error)
    assert "\n" not in message


def test_without_its_mark_a_folder_must_have_the_official_numbers(root, monkeypatch):
    (root / "standin.json").unlink()
    with pytest.raises(DataError, match=r"\(3, 12, 6, 15\), of CUB-200-2011 they are \(200, 11788, 5994, 15\)"):
        read_annotations(root)
    monkeypatch.setattr(cub_annotations, "OFFICIAL_COUNTS", (3, 12, 6, 15))
    assert read_annotations(root).source == "real"


def test_cached_images_are_the_decoded_files_at_the_shorter_side(root):
    grey = next(iter(sorted((root / "images").rglob("*.jpg"))))
    with Image.open(grey) as image:
        image.convert("L").save(grey)
    prepare_cub(root.parent, SIZE_PX)
    a = read_annotations(root)
    both = {split: load_cub(root.parent, split, SIZE_PX) for split in ("train", "test")}
    assert (len(both["train"]), len(both["test"])) == (6, 6)
    for split, birds in both.items():
        where = np.flatnonzero(a.is_train == (split == "train"))
        np.testing.assert_array_equal(birds.labels, a.labels[where])
        for i, j in enumerate(where):
            with Image.open(root / "images" / a.image_files[j]) as file:
                width, height = file.size
                scale = SIZE_PX / min(width, height)
                wanted = file.convert("RGB").resize(
                    (round(width * scale), round(height * scale)), Image.Resampling.BICUBIC
                )
            np.testing.assert_array_equal(birds.image(i), np.asarray(wanted))
            assert min(birds.image(i).shape[:2]) == SIZE_PX
            scales = np.array([wanted.width / width, wanted.height / height])
            np.testing.assert_allclose(birds.boxes_px[i], a.boxes_px[j] * np.tile(scales, 2), rtol=1e-5)
            np.testing.assert_allclose(birds.parts[i, :, :2], a.parts[j, :, :2] * scales, rtol=1e-5)
    first = both["train"].image(0)
    assert (first[..., 0] == first[..., 2]).all()
    assert (first != 0).any()


def test_what_sticks_out_of_an_image_is_clipped_or_refused(root):
    with Image.open(root / "images" / read_annotations(root).image_files[0]) as file:
        width, height = file.size
    edit(root / "bounding_boxes.txt", first_line(root, "bounding_boxes.txt"), f"1 -3 -2 {width + 8} {height + 2.5}")
    edit(root / "parts/part_locs.txt", first_line(root, "parts/part_locs.txt"), f"1 1 {width + 1} 4 1")
    prepare_cub(root, SIZE_PX)
    birds = load_cub(root, "train", SIZE_PX)
    h, w = birds.sizes_px[0].tolist()
    torch.testing.assert_close(birds.boxes_px[0], torch.tensor([0.0, 0.0, w, h]))
    assert birds.parts[0, 0].tolist() == [0, 0, 0]
    edit(root / "bounding_boxes.txt", first_line(root, "bounding_boxes.txt"), f"1 {width - 4} 2 10 10")
    with pytest.raises(DataError, match=r"bounding_boxes.txt: the box of 001\S+, .* is not in the image of"):
        prepare_cub(root, SIZE_PX)


@pytest.mark.parametrize("content", [b"", b"not a jpeg", None])
def test_a_corrupt_image_is_named_and_leaves_no_cache(root, content):
    name = read_annotations(root).image_files[5]
    path = root / "images" / name
    path.write_bytes(path.read_bytes()[:700] if content is None else content)
    with pytest.raises(DataError, match=f"{name} is not a readable image") as error:
        prepare_cub(root.parent, SIZE_PX)
    assert "\n" not in str(error.value)
    assert [p.name for p in root.parent.iterdir()] == [root.name]
    with pytest.raises(DataError, match=r"cub_48px is not there.*experiments\.prepare"):
        load_cub(root.parent, "train", SIZE_PX)


def damage(folder, how, root):
    pixels = folder / "pixels.u8"
    match how:
        case "truncated":
            pixels.write_bytes(pixels.read_bytes()[:-1])
        case "flipped":
            content = bytearray(pixels.read_bytes())
            content[1000] ^= 1
            pixels.write_bytes(content)
        case "index":
            (folder / "index.npz").write_bytes(b"junk")
        case "index head":
            index = folder / "index.npz"
            index.write_bytes(b"\0" + index.read_bytes()[1:])
        case "manifest":
            (folder / "manifest.json").write_text("{")
        case "half":
            (folder / "manifest.json").unlink()
        case "stale":
            edit(root / "bounding_boxes.txt", first_line(root, "bounding_boxes.txt"), "1 1 1 20 20")
        case "image":
            path = root / "images" / read_annotations(root).image_files[0]
            path.write_bytes(path.read_bytes() + b" ")


@pytest.mark.parametrize("how", ["truncated", "flipped", "index", "index head", "manifest", "half", "stale", "image"])
def test_a_damaged_or_stale_cache_is_noticed_and_made_anew(root, how):
    data_dir = root.parent
    pixels = data_dir / "cub_48px" / "pixels.u8"
    prepare_cub(data_dir, SIZE_PX)
    whole = pixels.read_bytes()
    damage(data_dir / "cub_48px", how, root)
    if how != "flipped":  # a checksum, which only the preparation looks at
        with pytest.raises(DataError, match=r"cub_48px .*experiments\.prepare"):
            load_cub(data_dir, "train", SIZE_PX)
    prepare_cub(data_dir, SIZE_PX)
    assert pixels.read_bytes() == whole
    assert len(load_cub(data_dir, "train", SIZE_PX)) == 6
    assert sorted(p.name for p in data_dir.iterdir()) == ["CUB_200_2011", "cub_48px"]


def test_a_whole_cache_is_not_made_again(root, monkeypatch):
    prepare_cub(root.parent, SIZE_PX)
    decoded = []
    monkeypatch.setattr(cub_images, "_decode", lambda path, size_px: decoded.append(path))
    before = {p.name: p.stat().st_mtime_ns for p in (root.parent / "cub_48px").iterdir()}
    prepare_cub(root.parent, SIZE_PX)
    assert decoded == []
    assert {p.name: p.stat().st_mtime_ns for p in (root.parent / "cub_48px").iterdir()} == before


def test_what_is_in_the_place_of_a_cache_is_not_replaced(root):
    (root.parent / "cub_48px").write_text("a file, not a folder")
    with pytest.raises(DataError, match=r"cub_48px is no cache, but in its place: move it away"):
        prepare_cub(root.parent, SIZE_PX)
    assert (root.parent / "cub_48px").read_text() == "a file, not a folder"


def test_an_unwritable_place_is_a_data_error(root):
    """A file where a folder would have to be: no rights are needed to show it, and root has all rights."""
    with pytest.raises(DataError, match=r"cannot write .*images\.txt"):
        cub_images.cache_images(read_annotations(root), root / "images.txt" / "cub", SIZE_PX)


def test_the_archive_of_the_users_is_checked_and_unpacked(standin, tmp_path, monkeypatch):
    archive = tmp_path / "CUB_200_2011.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(standin, "CUB_200_2011")
        tar.add(standin / "classes.txt", "attributes.txt")
    with pytest.raises(DataError, match=r"CUB_200_2011\.tgz"):
        prepare_cub(tmp_path, SIZE_PX)
    monkeypatch.setattr(cub, "ARCHIVE_MD5", hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(cub, "ARCHIVE_BYTES", archive.stat().st_size)
    root = prepare_cub(tmp_path, SIZE_PX)
    assert root == tmp_path / "CUB_200_2011"
    assert download.is_extracted(root)
    assert len(load_cub(tmp_path, "test", SIZE_PX)) == 6


def test_without_any_source_it_says_what_to_put_where(tmp_path):
    with pytest.raises(DataError, match=r"CUB_200_2011\.tgz.*97eceeb196236b17998738112f37df78"):
        prepare_cub(tmp_path, SIZE_PX)
    with pytest.raises(DataError, match=r"is not in .*: run `python -m experiments\.prepare dataset=cub` first"):
        load_cub(tmp_path, "train", 256)
    with pytest.raises(ValueError, match="split must be one of"):
        load_cub(tmp_path, "val", 256)


def painted_birds():
    """Two images whose pixels are (x, y, image); parts at the pixels' centres."""
    sizes = [(20, 31), (26, 20)]
    images = [
        np.stack([*np.meshgrid(np.arange(w), np.arange(h)), np.full((h, w), i)], axis=-1).astype(np.uint8)
        for i, (h, w) in enumerate(sizes)
    ]
    offsets = np.cumsum([0, images[0].size])
    parts = torch.tensor([[[4.5, 6.5, 1], [12.5, 3.5, 1], [10.5, 10.5, 1]]] * 2)
    return Birds(
        pixels=torch.from_numpy(np.concatenate([image.ravel() for image in images])),
        offsets=torch.from_numpy(offsets),
        sizes_px=torch.tensor(sizes),
        labels=torch.tensor([0, 1]),
        boxes_px=torch.tensor([[3.0, 2.0, 14.0, 12.0]] * 2),
        parts=parts,
        classes=("a", "b"),
        part_names=("left eye", "right eye", "beak"),
        size_px=20,
        source="standin",
        sha256="",
    )


def test_crops_are_everywhere_mirrored_by_half_and_boxes_and_parts_go_along():
    birds, crop_px = painted_birds(), 16
    index = torch.tensor([0, 1] * 400)
    crops = random_crop_flip(birds, index, crop_px, torch.Generator().manual_seed(0))
    assert crops.images.shape == (800, 3, 16, 16)
    assert crops.images.dtype == torch.uint8
    images = crops.images.long()
    mirrored = images[:, 0, 0, 0] > images[:, 0, 0, -1]
    assert 0.42 < mirrored.float().mean() < 0.58
    corner = torch.stack([images[:, 0].flatten(1).amin(1), images[:, 1].flatten(1).amin(1)], dim=1)
    for i, (h, w) in enumerate(birds.sizes_px.tolist()):
        places = {tuple(place) for place in corner[index == i].tolist()}
        assert {x for x, _ in places} == set(range(w - crop_px + 1))
        assert {y for _, y in places} == set(range(h - crop_px + 1))
    assert (images[:, 2] == index[:, None, None]).all()
    steps = images[:, 0].diff(dim=2)
    assert (steps == torch.where(mirrored, -1, 1)[:, None, None]).all()
    assert (images[:, 1].diff(dim=1) == 1).all()

    # What lies at a part of the crop is what lay at the part of the image: its pixel says where it came from.
    for k, (name, mirror_name) in enumerate((("left eye", "right eye"), ("right eye", "left eye"), ("beak", "beak"))):
        x, y, visible = crops.parts[:, k].unbind(1)
        here = visible > 0
        column = birds.part_names.index
        source = torch.where(mirrored[:, None], birds.parts[0, column(mirror_name)], birds.parts[0, column(name)])
        inside = ((source[:, :2] >= corner) & (source[:, :2] <= corner + crop_px)).all(1)
        assert torch.equal(here, inside)
        assert (crops.parts[~here, k] == 0).all()
        read = images[torch.arange(800)[here], :, y[here].long(), x[here].long()]
        torch.testing.assert_close(read[:, :2].float() + 0.5, source[here, :2])
    x0, _, x1, _ = crops.boxes_px.unbind(1)
    left = (birds.boxes_px[0, 0] - corner[:, 0]).clamp(0, crop_px)
    right = (birds.boxes_px[0, 2] - corner[:, 0]).clamp(0, crop_px)
    torch.testing.assert_close(x0, torch.where(mirrored, crop_px - right, left))
    torch.testing.assert_close(x1, torch.where(mirrored, crop_px - left, right))
    torch.testing.assert_close(crops.boxes_px[:, 1], (2.0 - corner[:, 1]).clamp(0, crop_px))


def test_crops_depend_on_the_generator_alone():
    birds, index = painted_birds(), torch.tensor([1, 0, 1])
    first, second = (random_crop_flip(birds, index, 12, torch.Generator().manual_seed(3)) for _ in range(2))
    for name in ("images", "boxes_px", "parts"):
        assert torch.equal(getattr(first, name), getattr(second, name))


def test_the_center_crop_is_in_the_middle():
    crops = center_crop(painted_birds(), torch.tensor([0, 1]), 16)
    assert crops.images[:, :2, 0, 0].tolist() == [[7, 2], [2, 5]]
    assert crops.boxes_px[0].tolist() == [0, 0, 7, 10]
    assert crops.parts[0].tolist() == [[0, 0, 0], [5.5, 1.5, 1], [3.5, 8.5, 1]]


@pytest.mark.parametrize("crop_px", [0, 21])
def test_a_crop_larger_than_the_shorter_side_is_refused(crop_px):
    with pytest.raises(ValueError, match=rf"crop_px must be in 1\.\.20, the images' shorter side, got {crop_px}"):
        center_crop(painted_birds(), torch.tensor([0]), crop_px)


def test_the_manifest_says_what_the_cache_was_made_from(root):
    prepare_cub(root.parent, SIZE_PX)
    folder = root.parent / "cub_48px"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["files"]["pixels.u8"]["sha256"] == hashlib.sha256((folder / "pixels.u8").read_bytes()).hexdigest()
    assert manifest["source"]["annotations_sha256"] == load_cub(root.parent, "test", SIZE_PX).sha256
    assert manifest["n_images"] == N
