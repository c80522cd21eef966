"""Write model files with a model card from trained weights: python -m experiments.export table=table1 protocol=fast

Weights as float16 with their record's settings and numbers, in safetensors: no code is in them. Each file is read
again and tested; the card, README.md beside them, has its error beside that of the run.
"""

from pathlib import Path

import pandas as pd

from experiments.cli import main
from experiments.config import CONF
from experiments.evaluate import run_of_weights
from stn.results.records import read_records, records_root
from stn.results.spec import TableSpec
from stn.results.tables import load_table, select

PLAIN = "cnn"
CARD = """# Trained models

{title}.{which} Made by
`python -m experiments.export`; each file holds float16 weights (safetensors, no code) and the settings of its run.

```python
import stn

net = stn.load("{example}")  # in evaluation mode, on the CPU
logits = net(images)  # (N, C, H, W) in [0, 1], distorted as in the column's task
logits, warped = net.observe(images)  # with what each spatial transformer did: image, theta, grid
```

{table}

"run" is what the record of the run says, "file" that of the file, read again and tested on the same
images ({n_test} test images, {draws} distortions of each). Protocol {protocol}: {note}. Seed {seed}.{flattered}

**For**: looking at what spatial transformers learn, and as a start for other runs. **Not for**: reading digits in the
wild; each model knows the images of its column, distorted as the paper distorts them, and nothing else.
The data sets have their own terms. Weights: MIT, as the code.
"""


def export(settings: dict) -> None:
    import torch

    from stn.train.evaluation import evaluate
    from stn.trained import SUFFIX, find, read, write

    data, protocol, out = settings["data"], settings["protocol"], Path(settings["out"])
    spec = load_table(CONF / "table" / f"{settings['table']}.yaml")
    records = select(spec, read_records(records_root(settings["results_dir"], data)), protocol, data)
    records = [record for record in records if record["seed"] == settings["seed"] and record["status"] == "ok"]
    if not records:
        raise ValueError(f"no record of {spec.name} at protocol={protocol} with seed={settings['seed']}, so no model")
    unknown = set(settings["models"] or ()) - {record["model"] for record in records}
    if unknown:
        there = ", ".join(sorted({record["model"] for record in records}))
        raise ValueError(f"models={', '.join(sorted(unknown))}: no record of it; allowed: {there}")
    rows = []
    chosen = headline(spec, records, settings["models"])
    found = [find(record, output_dir=settings["output_dir"]) for record in chosen]  # all, before a file is replaced
    for record, weights in zip(chosen, found, strict=True):
        path = out / f"{record['task']}_{record['model']}{SUFFIX}"
        trained = read(write(weights, path, torch.float16))
        error = evaluate(trained, run_of_weights(trained, settings)).metrics[spec.metric]
        rows.append(card_row(spec, record, path, error))
        print(f"wrote {path}: {error:.2f} {spec.unit}, {path.stat().st_size / 1e6:.2f} MB")
    print(f"wrote {write_card(out / 'README.md', spec, records[0], rows, best=not settings['models'])}")


def headline(spec: TableSpec, records: list[dict], models: list[str]) -> list[dict]:
    """Column by column the records of these models; of none, the best one's and the plain CNN's."""
    chosen = []
    for column in spec.columns:
        of_column = {record["model"]: record for record in records if record["task"] == column.task}
        best = sorted(of_column, key=lambda model: of_column[model]["metrics"][spec.metric])
        best = best[:1] if spec.lower_is_better else best[-1:]
        chosen += [of_column[model] for model in models or dict.fromkeys([PLAIN, *best]) if model in of_column]
    return chosen


def card_row(spec: TableSpec, record: dict, path: Path, error: float) -> dict:
    """What the card says of a model."""
    labels = {row.model: row.label for row in spec.rows}, {column.task: column.label for column in spec.columns}
    return {
        "file": f"[{path.name}]({path.name})",
        "column": labels[1][record["task"]],
        "model": labels[0][record["model"]],
        "parameters": record["n_params"],
        f"{spec.unit}, run": f"{record['metrics'][spec.metric]:.2f}",
        f"{spec.unit}, file": f"{error:.2f}",
        "steps": record["steps"],
        "trained on": record["device"],
    }


def write_card(path: Path, spec: TableSpec, record: dict, rows: list[dict], best: bool) -> Path:
    """`best`: the best model of each column was chosen."""
    table = pd.DataFrame(rows)
    files = table["file"].str.extract(r"\[(.+)\]", expand=False)
    shown = next((file for file in files if "_st_" in file), files.iloc[0])  # one that has something to observe
    example = (path.parent / shown).as_posix()
    plain = any(row.model == PLAIN for row in spec.rows)
    text = CARD.format(
        title=spec.title,
        which=f" Of each column the best model{' and the plain CNN' if plain else ''}." if best else "",
        flattered=" The best is chosen\nby its test score, which flatters it a little." if best else "",
        example=example,
        table=table.to_markdown(index=False, disable_numparse=True),
        n_test=record["n_test"],
        draws=record["test_draws"],
        protocol=record["protocol"],
        note=record["config"]["protocol_note"].rstrip("."),
        seed=record["seed"],
    )
    path.write_text(text, encoding="utf-8", newline="\n")
    return path


if __name__ == "__main__":
    main(export)
