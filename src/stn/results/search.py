"""What came of a study of Optuna: a table of its trials, parallel coordinates, and which settings mattered."""

import warnings
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import optuna
import pandas as pd
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import TrialState
from optuna.visualization import matplotlib as plots

matplotlib.use("agg")  # no window

LABEL = "held-out error, %"


def trials_table(study: optuna.Study) -> pd.DataFrame:
    """One row per trial that was completed or pruned, the best first; pruned ones have no error."""
    rows = []
    for trial in study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED)):
        value = trial.value if trial.state is TrialState.COMPLETE else None
        rows.append({"trial": trial.number, "state": trial.state.name.lower(), LABEL: value, **trial.params})
    return pd.DataFrame(rows).sort_values([LABEL, "trial"], ignore_index=True) if rows else pd.DataFrame()


def write_study(study: optuna.Study, folder: Path, command: str) -> list[Path]:
    """Writes trials.csv, trials.md (with the `command` that tests the best) and the plots into `folder`.

    Plots need two complete trials whose errors differ.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = trials_table(study)
    table.to_csv(folder / "trials.csv", index=False)
    shown = table.to_markdown(index=False, floatfmt=".4g", missingval="–")
    text = f"# {study.study_name}\n\n{shown}\n\nThe best on the test set: `{command}`\n"
    (folder / "trials.md").write_text(text, encoding="utf-8")
    paths = [folder / "trials.csv", folder / "trials.md"]
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    if len({trial.value for trial in complete}) > 1:
        paths += [_plot(study, kind, folder / f"{kind}.png") for kind in ("parallel_coordinate", "importances")]
    return paths


def _plot(study: optuna.Study, kind: str, path: Path) -> Path:
    """One of Optuna's own plots."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # since 2020
        if kind == "importances":
            # PED-ANOVA asks what the best trials have in common; Optuna's usual evaluator needs scikit-learn.
            axes = plots.plot_param_importances(study, PedAnovaImportanceEvaluator(), target_name=LABEL)
        else:
            axes = plots.plot_parallel_coordinate(study, target_name=LABEL)
            axes.collections[0].set_cmap("viridis")  # Optuna's ends in white
    axes.figure.set_size_inches(9, 4)
    axes.figure.savefig(path, dpi=100, bbox_inches="tight", metadata={"Software": None})
    plt.close(axes.figure)
    return path
