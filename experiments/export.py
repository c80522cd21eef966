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

CARD = """# Trained models

{title}. Of each column the best model and the plain CNN. Made by
`python -m experiments.export`; each file holds float16 weights (safetensors, no code) and the settings of its run.

```python
import stn

net = stn.load("{example}")  # in evaluation mode, on the CPU
logits = net(images)  # (N, C, H, W) in [0, 1], distorted as in the column's task
logits, warped = net.observe(images)  # with what each spatial transformer did: image, theta, grid
```

{table}

"run" is what the record of the run says, "file" that of the file, read again and tested on the same
images ({n_test} test digits, {draws} distortions of each). Protocol {protocol}: {note}. Seed {seed}. The best is chosen
by its test error, which flatters it a little.

**For**: looking at what spatial transformers learn, and as a start for other runs. **Not for**: reading digits in the
wild; the models know MNIST's digits, distorted by the five distortions of Sect. 4.1 of the paper, and nothing else.
Data: MNIST (LeCun, Cortes, Burges), under its own terms. Weights: MIT, as the code.
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
    for record in headline(spec, records, settings["models"]):
        path = out / f"{record['task']}_{record['model']}{SUFFIX}"
        write(find(record, output_dir=settings["output_dir"]), path, torch.float16)
        trained = read(path)
        error = evaluate(trained, run_of_weights(trained, settings)).metrics[spec.metric]
        rows.append(card_row(spec, record, path, error))
        print(f"wrote {path}: {error:.2f} {spec.unit}, {path.stat().st_size / 1e6:.2f} MB")
    print(f"wrote {write_card(out / 'README.md', spec, records[0], rows)}")


def headline(spec: TableSpec, records: list[dict], models: list[str]) -> list[dict]:
    """Column by column the records of these models; of none, the best one's and the plain CNN's."""
    chosen = []
    for column in spec.columns:
        of_column = {record["model"]: record for record in records if record["task"] == column.task}
        best = sorted(of_column, key=lambda model: of_column[model]["metrics"][spec.metric])
        best = best[:1] if spec.lower_is_better else best[-1:]
        chosen += [of_column[model] for model in models or dict.fromkeys(["cnn", *best]) if model in of_column]
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


def write_card(path: Path, spec: TableSpec, record: dict, rows: list[dict]) -> Path:
    table = pd.DataFrame(rows)
    files = table["file"].str.extract(r"\[(.+)\]", expand=False)
    shown = next((file for file in files if "_st_" in file), files.iloc[0])  # one that has something to observe
    example = (path.parent / shown).as_posix()
    text = CARD.format(
        title=spec.title,
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
