"""Create a W&B workspace and a W&B report of the tracked runs: python -m experiments.dashboard

The workspace has panels for results, training, optimisation and what the spatial transformers do; the report has the
tables of results/tables beside the paper's numbers, error by seed, learning curves and galleries. Needs an account and
the extra `dashboard`; `python -m experiments.report` needs neither. Runs tracked offline are uploaded by `wandb sync`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from experiments.cli import main
from experiments.config import CONF
from stn.results.records import RunKey
from stn.results.spec import TableSpec
from stn.results.tables import load_table
from stn.watch.tracking import default_group

NAME = "Spatial Transformer Networks, replicated"
LOCAL = "`make report` writes the same tables, curves and galleries to results/report.html"
# What the panels show; every run logs these, but for those of a transformer and of one label per image.
STEP = "trainer/global_step"
CURVES = {
    "Training": ("train/loss", "train/error_pct", "train/images_per_s"),
    "Optimisation": ("optim/lr_rest", "optim/lr_localiser", "optim/grad_norm_rest", "optim/grad_norm_localiser"),
    "Spatial transformer": ("theta/grid_inside", "theta/angle_std_after_deg"),
}
TRANSFORMERS = 4  # side by side, at most: each has a grid of its own, theta/st<k>_grid_inside
LOGARITHMIC = ("train/loss", "train/error_pct")
ERROR, WARPS, CONFUSION = "test/error_pct", "warps", "confusion_matrix_table"


class Rendered(NamedTuple):
    """A table in results/tables, of one protocol and one kind of data."""

    spec: TableSpec
    protocol: str
    data: str
    text: str


def dashboard(settings: dict) -> None:
    entity, project = (settings["wandb"][name] for name in ("entity", "project"))
    if not isinstance(project, str):
        raise ValueError(f"wandb.project must be a name, got {project!r}")
    for url in create(entity, project, list(rendered(Path(settings["results_dir"])))):
        print(url)


def create(entity: str | None, project: str, tables: list[Rendered]) -> Iterator[str]:
    """Saves workspace and report, new ones at every call; their addresses.

    Raises: ValueError, one line, without an account or the extra.
    """
    import wandb

    try:
        entity = wandb.Api().default_entity if entity is None else entity
        for page in (workspace(entity, project), report(entity, project, tables)):
            page.save()
            yield page.url
    except wandb.errors.Error as error:
        raise ValueError(f"no W&B account: {' '.join(str(error).split())} Without one, {LOCAL}") from error
    except ModuleNotFoundError as error:
        if error.name.partition(".")[0] != "wandb_workspaces":
            raise
        raise ValueError(f"the dashboard needs an extra: pip install -e '.[dashboard]'; without it, {LOCAL}") from error


def rendered(results_dir: Path) -> Iterator[Rendered]:
    """Title, note, overview and claims of each table that is there, in the order of conf/table."""
    for spec in (load_table(path) for path in sorted((CONF / "table").glob("*.yaml"))):
        for path in sorted((results_dir / "tables").glob(f"{spec.name}_*.md")):
            first = pd.read_csv(path.with_suffix(".csv"), nrows=1).iloc[0]
            text = path.read_text(encoding="utf-8").split("\n## Claims, part by part")[0].split("\n## Cells")[0]
            lower = text.replace("\n## ", "\n### ").replace("# ", "## ", 1)  # the page has a title of its own
            yield Rendered(spec, first["protocol"], first["data"], lower)


def workspace(entity: str, project: str):
    """The saved view of the project: sections of panels, runs grouped by cell and protocol."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    results = [*_results(ERROR), wr.RunComparer(diff_only="split")]
    sections = [ws.Section(name="Results", panels=results, is_open=True)]
    for name, keys in CURVES.items():
        media = [_gallery()] if name == "Spatial transformer" else []
        sections.append(ws.Section(name=name, panels=[*map(_curve, keys), *media], is_open=True))
    sections.append(ws.Section(name="Confusion matrix", panels=[_confusion()]))
    pinned = ["summary:status", f"summary:{ERROR}", "summary:images_per_s"]
    groups = ws.RunsetSettings(groupby=[ws.Metric("Group"), ws.Metric("JobType")], pinned_columns=pinned)
    return ws.Workspace(entity=entity, project=project, name=NAME, sections=sections, runset_settings=groups)


def report(entity: str, project: str, tables: list[Rendered]):
    """Table by table: ours beside the paper's, then the runs behind it."""
    import wandb_workspaces.reports.v2 as wr

    blocks = [wr.P(f"Tables of the records, and the runs that W&B tracked. {LOCAL}."), wr.TableOfContents()]
    for table in tables:
        runs = wr.Runset(name=table.protocol, filters=run_filter(table))  # of the report's own project
        panels = [*_results(table.spec.metric), *map(_curve, CURVES["Training"][:2])]
        blocks += [wr.MarkdownBlock(table.text), wr.PanelGrid(runsets=[runs], panels=[*panels, _gallery()])]
    if not tables:
        blocks.append(wr.P("No table has been rendered yet: run `make tables`."))
    return wr.Report(entity=entity, project=project, title=NAME, blocks=blocks, width="fluid")


def run_filter(table: Rendered) -> str:
    """The finished runs that fill cells of a table, in W&B's words; those of sweeps have groups of their own."""
    protocol = table.protocol
    keys = dict.fromkeys(RunKey(column.task, row.model, protocol, 0) for row, column, _ in table.spec.cells())
    groups = ", ".join(repr(default_group(key, table.data)) for key in keys)
    return f"Group in [{groups}] and JobType = '{protocol}' and State = 'finished'"


def _curve(key: str):
    """Mean and range over the seeds of each cell."""
    import wandb_workspaces.reports.v2 as wr

    each = [key.replace("/", f"/st{k}_") for k in range(TRANSFORMERS)] if key.endswith("/grid_inside") else []
    over_seeds = {"groupby": wr.Metric("Group"), "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    axes = {"x": STEP, "y": [key, *each], "title_x": "training step", "log_y": key in LOGARITHMIC}
    return wr.LinePlot(title=key, **axes, **over_seeds)


def _results(key: str) -> list:
    import wandb_workspaces.reports.v2 as wr

    return [
        wr.BarPlot(title=f"{key} by cell", metrics=[key], groupby=wr.Metric("Group"), groupby_aggfunc="mean"),
        wr.ScatterPlot(title=f"{key} by seed", x=wr.Config("seed"), y=wr.SummaryMetric(key)),
    ]


def _gallery():
    import wandb_workspaces.reports.v2 as wr

    return wr.MediaBrowser(title="input, grid, output", media_keys=[WARPS], num_columns=1)


def _confusion():
    import wandb_workspaces.reports.v2 as wr

    fields = {name: name for name in ("Actual", "Predicted", "nPredictions")}
    chart = wr.CustomChart.from_table(CONFUSION, fields, {"title": "test images"})
    chart.chart_name = "wandb/confusion_matrix/v1"
    return chart


if __name__ == "__main__":
    main(dashboard)
