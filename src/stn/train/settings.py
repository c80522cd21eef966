"""What resolved settings (conf/train.yaml) say about a run. Imports no torch."""

from stn.results.records import RunKey


def science(settings: dict) -> dict:
    """The part of the settings that decides a run's numbers: what its record states and its hash covers."""
    return {
        "task": settings["task"],
        "model": settings["model"],
        "recipe": settings["recipe"],
        "evaluate": settings["evaluate"],
        "protocol_note": settings["protocol"]["note"],
        "seed": settings["seed"],
    }


def run_key(settings: dict) -> RunKey:
    """Which run these settings are."""
    return RunKey(settings["task"]["name"], settings["model"]["name"], settings["protocol"]["name"], settings["seed"])
