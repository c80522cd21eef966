"""The page of results: complete, escaped, well-formed, accessible, and honest about what it cannot show."""

import base64
import itertools
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import report as verb
from experiments.cli import main
from experiments.config import compose_run
from stn.results.pictures import picture
from stn.results.records import record_path, records_root, run_key, write_records
from stn.results.report import _run, duration, write_report

VOID = {"meta", "link", "img", "br", "input", "hr"}


class Page(HTMLParser):
    """Tags in order with attributes and text; raises on a tag that closes another."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html, self.tags, self.open, self.texts = html, [], [], []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        if tag in ("td", "th", "dt", "dd"):
            self.handle_data(" ")
        self.tags.append((tag, dict(attributes)))
        self.texts.append("")
        if tag not in VOID:
            self.open.append((tag, len(self.tags) - 1))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for _, place in self.open:
            self.texts[place] += data

    def all(self, tag, **attributes):
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}
        return [
            (a, " ".join(text.split()))
            for (name, a), text in zip(self.tags, self.texts, strict=True)
            if name == tag and wanted.items() <= a.items()
        ]

    def text_of(self, id_: str) -> str:
        (text,) = [t for (_, a), t in zip(self.tags, self.texts, strict=True) if a.get("id") == id_]
        return " ".join(text.split())


@pytest.fixture
def project(tmp_path, small_table):
    """Call it with records: writes them with the small table and returns the page, the problems and the results."""
    small_table()
    results = tmp_path / "results"

    def make(*records):
        for record in records:
            write_records({record_path(records_root(results, record["data"]), run_key(record)): record})
        problems = write_report(results, tmp_path / "conf", tmp_path / "page.html")
        return Page((tmp_path / "page.html").read_text(encoding="utf-8")), problems

    make.results, make.conf = results, tmp_path / "conf"
    (results / "figures").mkdir(parents=True)
    return make


def save_picture(path: Path, *levels: int) -> None:
    """A picture of one grey, or an animation with one grey per frame."""
    frames = [Image.fromarray(np.full((6, 8), level, np.uint8)) for level in levels]
    animation = {"save_all": True, "append_images": frames[1:], "duration": 100} if len(levels) > 1 else {}
    frames[0].save(path, **animation)


def test_the_page_is_well_formed_self_contained_and_accessible(project, record, bad):
    save_picture(project.results / "figures" / "gallery_mnist_r_fast.png", 9)
    save_picture(project.results / "figures" / "training_mnist_e_fcn_quick_standin.gif", 0, 255)
    save_picture(project.results / "figures" / "distortions.png", 9)
    page, problems = project(
        record(),
        record(seed=1, wrong=52),
        bad(model="st_fcn_tps"),
        record(protocol="quick", data="standin", task="mnist_e"),
        record(task="elsewhere"),
    )
    assert problems == []
    assert page.all("html")[0][0]["lang"] == "en"
    assert page.all("title")[0][1]
    assert not page.all("script")
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))

    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    for name in ("aria-labelledby", "popovertarget"):
        assert {a[name] for _, a in page.tags if name in a} <= set(ids)
    links = [a["href"] for _, a in page.tags if "href" in a]
    assert all(link[1:] in ids for link in links if link.startswith("#"))
    assert all(link.startswith(("#", "data:")) for link in links)
    assert all(a["src"].startswith("data:image/") for _, a in page.tags if "src" in a)
    assert not re.search(r"(https?:)?//\w|@import|url\(", re.sub(r"base64,[\w+/=]+", "", page.html))

    pictures = page.all("img")
    # one at a glance, a table figure and one of curves per section, the gallery, the distortions, the animation and its
    # still
    assert len(pictures) == 9
    assert all(a["alt"] and int(a["width"]) and int(a["height"]) for a, _ in pictures)
    assert all(a.get("scope") in ("col", "row") for a, _ in page.all("th"))
    assert len(page.all("table", class_="numbers")) == len(page.all("caption")) - 1 == 2
    assert all(text or a.get("aria-label") for a, text in page.all("button"))


def test_a_number_opens_its_runs(project, record):
    runs = [
        record(seed=0, wall_s=484.2, device="a device"),
        record(seed=1, wrong=52, git={"revision": "ff00", "dirty": True}),
    ]
    page, _ = project(*runs)
    (button,) = [a for a, text in page.all("button", class_="ours")]
    (text,) = [t for a, t in page.all("div", id=button["popovertarget"]) if "popover" in a]
    for said in ("FCN on R", "5.10 ± 1.27", "Paper 2.1", "difference +3.00", "worse", "123456 parameters"):
        assert said in text
    for run in runs:
        assert f"Seed {run['seed']} {run['metrics']['test/error_pct']:g}, ok" in text
        assert f"results/runs/mnist_r/fcn/fast/seed{run['seed']}.json" in text
        assert f"python -m experiments.train task=mnist_r model=fcn protocol=fast seed={run['seed']}" in text
    for said in ("200 steps in 8 min 4 s", "a device, 2 threads", "numpy 2", "1000 images × 2 draws", "mnist: 00ff"):
        assert said in text
    assert "ff00 with uncommitted changes" in text
    assert "2025-01-01 00:00 UTC" in text


def test_tables_claims_and_counts_are_those_of_the_records(project, record):
    page, _ = project(
        record(), record(model="st_fcn_affine", wrong=12), record(model="st_fcn_affine", task="mnist_e", wrong=90)
    )
    ((_, numbers),) = page.all("table", class_="numbers")
    # the cells of a row in order: ours, the paper's number, the difference, the verdict
    assert "ST-FCN Aff 1.20 paper 1.2 +0.00 match 9.00 paper 2.7 +6.30 worse" in numbers
    assert "FCN 5.00 paper 2.1 +2.90 worse missing paper 3.2" in numbers
    assert "Maxout (cited) paper 4.0 –" in numbers
    ((_, row),) = [(a, t) for a, t in page.all("tr") if t.startswith("Golden: two distortions, fast")]
    assert row == "Golden: two distortions, fast 1 0 2 0 2 0 0 0 2 3 37.5 s"
    claim = next(text for _, text in page.all("details", class_="claim") if "An ST improves the FCN" in text)
    assert "-3.80 pp" in claim
    assert "missing" in claim


def test_real_and_standin_data_are_sections_of_their_own_and_say_so(project, record):
    page, _ = project(record(), record(data="standin", wrong=80))
    headings = [text for _, text in page.all("h2")]
    assert len([h for h in headings if "Golden" in h]) == 2
    (standin,) = [h for h in headings if "STAND-IN DATA" in h]
    section = page.all("section", class_="standin")[0][1]
    assert standin in section
    assert "8.00" in section
    assert "5.00" not in section
    assert "cited" not in section
    rows = [t for _, t in page.all("tr") if t.startswith("Golden: two distortions, fast")]
    assert {tuple(row.split()[-12:-6]) for row in rows} == {tuple("001040"), tuple("000041")}


def test_text_from_records_is_escaped(project, bad):
    page, _ = project(bad(reason="<script>alert('x')</script> & more", versions={"<b>": "<i>1</i>"}))
    assert not page.all("script")
    assert not page.all("i")
    assert "collapsed: <script>alert('x')</script> & more" in page.text_of("tablegolden_fast-0")


def test_every_cell_is_counted_and_a_variant_shows_its_metric_and_what_is_changed(project, record, bad):
    variant = record(protocol="fast-0123abcd", metrics={"heldout/error_pct": 4.25, "train/loss": 0.1})
    variant["config"] = {**variant["config"], "recipe": {"steps": 7}, "protocol_note": "40k steps; but steps=7"}
    write_records({record_path(project.results / "sweeps", run_key(variant)): variant})
    page, problems = project(record(), bad(model="st_fcn_affine"))
    assert problems == []
    ((_, row),) = [(a, t) for a, t in page.all("tr") if t.startswith("Golden: two distortions, fast")]
    assert sum(map(int, row.split()[-12:-6])) == len(page.all("span", class_="paper")) - 1  # one is cited
    (said,) = [text for _, text in page.all("details", class_="claim") if "fast-0123abcd" in text]
    assert "Seed 0 4.25, ok" in said
    assert "Protocol 40k steps; but steps=7" in said
    assert "Repeat" not in said


def test_a_folder_without_tables_is_refused(project, record):
    project(record())
    with pytest.raises(FileNotFoundError, match="conf_dir must be one with table"):
        write_report(project.results, project.conf / "nowhere", project.conf / "page.html")


def test_without_records_the_page_says_so(project):
    page, problems = project()
    assert problems == []
    assert "No results yet" in [text for _, text in page.all("h2")]
    assert "0 run records" in page.all("header")[0][1]


def test_what_cannot_be_shown_is_one_line_each_and_the_rest_is_shown(project, record, capsys):
    project(record(), record(seed=1))
    torn = project.results / "runs/mnist_r/fcn/fast/seed1.json"
    torn.write_text(torn.read_text()[:100])
    no_picture = project.results / "figures" / "gallery_mnist_r_fast.png"
    no_picture.write_bytes(b"\x89PNG no")
    page, problems = project(record(protocol="quick"), record(protocol="quick", seed=1, config_hash="f" * 16))
    assert len(problems) == 3
    for said in (
        str(torn),
        str(no_picture),
        "tablegolden_quick: mnist_r/fcn/quick/seed0 and mnist_r/fcn/quick/seed1 differ",
    ):
        assert any(said in problem for problem in problems)
        assert said in page.all("section", class_="problems")[0][1]
    assert all(len(problem.splitlines()) == 1 for problem in problems)
    assert "5.00" in page.all("table", class_="numbers")[0][1]
    with pytest.raises(SystemExit) as stopped:
        verb.report({"results_dir": project.results, "conf_dir": project.conf, "out": None})
    assert stopped.value.code == "\n".join(problems)
    assert (project.results / "report.html").exists()


def test_what_is_no_result_is_shown_where_there_is_nothing_else(project, record):
    save_picture(project.results / "figures" / "gallery_mnist_r_smoke.png", 9)
    page, _ = project(record(protocol="smoke"))
    assert "Golden: two distortions, % error, protocol smoke" in [text for _, text in page.all("h2")]
    page, _ = project(record())
    assert "smoke" not in re.sub(r"base64,[\w+/=]+", "", page.html)
    assert "1 run record," in page.all("header")[0][1]


def test_at_a_glance_is_a_picture_of_each_table_that_has_numbers_of_the_papers(project, record):
    page, _ = project(record(), record(protocol="modern"), record(data="standin"))
    first = next(text for _, text in page.all("section"))
    assert first.startswith("At a glance")
    captions = [a["alt"] for a, _ in page.all("img") if "against the paper" in a["alt"]]
    assert captions == [
        "Golden: two distortions, fast: our numbers against the paper's",
        "Golden: two distortions, modern: our numbers against the paper's",
    ]


@pytest.mark.parametrize(
    ("data", "told"), [("real", ""), ("subset", ", part of the real data"), ("standin", ", stand-in data")]
)
def test_the_list_of_tables_says_which_data_each_is_on(project, record, data, told):
    page, _ = project(record(data=data))
    assert f"Golden: two distortions, fast{told}" in [text for _, text in page.all("a")]


def test_sweeps_show_what_differed_beside_what_came_of_it(project, record):
    def config(lr, model="fcn"):
        return {"model": {"name": model}, "recipe": {"lr": lr, "steps": 20}, "protocol_note": "note", "seed": 0}

    sweeps = project.results / "sweeps"
    for protocol, seed, lr, wrong in [("fast-aa", 0, 0.1, 30), ("fast-aa", 1, 0.1, 40), ("fast-bb", 0, 0.2, 10)]:
        made = record(protocol=protocol, seed=seed, wrong=wrong, config=config(lr))
        write_records({record_path(sweeps, run_key(made)): made})
    study = sweeps / "studies" / "localiser-mnist_r"
    study.mkdir(parents=True)
    (study / "trials.csv").write_text("trial,state,error\n1,complete,2.5\n0,pruned,\n", encoding="utf-8")
    save_picture(study / "importances.png", 9)
    page, problems = project(record())
    assert problems == []
    ((_, section),) = [(a, t) for a, t in page.all("section") if t.startswith("Sweeps")]
    assert "variant recipe.lr runs test/error_pct fast-bb 0.2 1 ok 1 fast-aa 0.1 2 ok 3.5" in section  # the best first
    assert "recipe.steps" not in section.partition("fast-aa, seed 0")[0]  # the same in all
    assert "results/sweeps/runs/mnist_r/fcn/fast-bb/seed0.json" in section
    assert "trial state error 1 complete 2.5 0 pruned –" in section
    assert "localiser-mnist_r: importances" in [a["alt"] for a, _ in page.all("img")]
    assert "fast-aa" not in page.all("table", class_="numbers")[0][1]


def test_a_folder_that_is_not_there_is_one_line_and_status_2(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["report", f"results_dir={tmp_path / 'nowhere'}"])
    with pytest.raises(SystemExit) as stopped:
        main(verb.report)
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/nowhere: no such folder; results_dir must be one with runs/ in it\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "data", "heading"),
    [
        ("gallery_mnist_r_fast", "real", "Golden"),
        ("gallery_mnist_r_st_fcn_affine_fast", "real", "Golden"),
        ("gallery_mnist_rts_fast", "real", "Other pictures"),
        ("gallery_mnist_r_fast_standin", "real", "Other pictures"),
        ("gallery_mnist_r_fast_standin", "standin", "Golden"),
        ("gallery_mnist_r_fast_subset", "subset", "Golden"),
        ("gallery_mnist_r_fast", "subset", "Other pictures"),
        ("gallery_mnist_r_paper", "real", "Other pictures"),
    ],
)
def test_a_picture_stands_with_its_own_table(project, record, monkeypatch, name, data, heading):
    monkeypatch.setattr("stn.results.report._plots", lambda *_: (picture(project.results / "any.png", "a plot"),))
    save_picture(project.results / "any.png", 1)
    save_picture(project.results / "figures" / f"{name}.png", 9)
    page, _ = project(record(data=data))
    (section,) = [text for _, text in page.all("section") if "what the network sees" in text]
    assert section.startswith(heading)


def test_of_an_animation_the_last_frame_stands_still(tmp_path):
    save_picture(tmp_path / "moving.gif", 0, 100, 255)
    save_picture(tmp_path / "still.png", 7)
    moving, still = (picture(tmp_path / name, "words") for name in ("moving.gif", "still.png"))
    assert still.still is None
    assert (moving.width_px, moving.height_px) == (8, 6)
    (tmp_path / "frame.png").write_bytes(_decoded(moving.still))
    assert np.asarray(Image.open(tmp_path / "frame.png").convert("L")).min() == 255
    assert _decoded(moving.uri) == (tmp_path / "moving.gif").read_bytes()


def _decoded(uri: str) -> bytes:
    return base64.b64decode(uri.partition("base64,")[2])


@pytest.mark.parametrize("overrides", [[], ["task=svhn_64", "model=svhn_cnn", "data=standin"]])
def test_the_command_of_a_run_composes_its_settings(record, overrides):
    settings = compose_run(["task=mnist_r", "model=fcn", "protocol=smoke", "seed=3", *overrides])
    config = settings.config
    made = record(**settings.key._asdict(), data=settings.data, config=config, config_hash=settings.hash)
    interpreter, flag, module, *again = _run(made).command.split()
    assert (interpreter, flag, module) == ("python", "-m", "experiments.train")
    run = compose_run(again)
    assert (run.config, run.force) == (config, True)  # else what has its record is not run again


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "unknown"),
        (0.25, "0.25 s"),
        (59.96, "60 s"),
        (60, "1 min 0 s"),
        (484.2, "8 min 4 s"),
        (7322, "2 h 2 min"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_the_report_imports_no_torch():
    code = "import sys, experiments.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
