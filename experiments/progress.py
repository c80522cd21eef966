"""What commands that train say of themselves: on the terminal, and by their exit status."""

import sys
import time

from rich.console import Console

OUT_OF_TIME = 75  # exit status (EX_TEMPFAIL) when the time budget is used up: the same command goes on

console = Console(highlight=False, soft_wrap=True)


def leave(failures: list[str], late: int) -> None:
    """Ends a command in which runs failed, or were late: lines for the failures, else the status `OUT_OF_TIME`."""
    if failures:
        sys.exit("\n".join(failures))
    if late:
        sys.exit(OUT_OF_TIME)


def deadline_of(budget_s: float | None) -> float | None:
    """When a time budget that begins now is used up, as time.time()."""
    return None if budget_s is None else time.time() + budget_s
