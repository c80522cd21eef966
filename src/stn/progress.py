"""How far a command is: a bar on a terminal, elsewhere a line now and then."""

import time
from datetime import timedelta

from rich.console import Console
from rich.progress import Progress, ProgressColumn, TextColumn, TimeElapsedColumn

EVERY_S = 60.0  # a line, where there is no terminal


class Bar:
    """`with Bar(total, what) as bar`, then bar.update(done): share, time so far and time left, on standard error.

    `total` is None where it is not known beforehand. `columns`: more of rich's.
    """

    def __init__(
        self,
        total: float | None,
        what: str = "",
        *columns: ProgressColumn,
        console: Console | None = None,
        shown: bool = True,
    ) -> None:
        self.total, self.what, self.shown = total, what, shown
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self.began = self.said = time.monotonic()
        self.first: float | None = None  # what was done already when it began
        *usual, remaining = Progress.get_default_columns()
        columns = (*usual, *columns, TimeElapsedColumn(), TextColumn("left"), remaining)
        self.bar = Progress(*columns, console=self.console, speed_estimate_period=300)
        self.task = self.bar.add_task(what, total=total)

    def __enter__(self) -> "Bar":
        if self.shown and self.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(self, *_) -> None:
        if self.bar.live.is_started:  # else it would print an empty line
            self.bar.stop()

    def update(self, done: float, what: str | None = None) -> None:
        """`what`: in place of what was said before."""
        self.what = self.what if what is None else what
        if self.console.is_terminal:
            self.bar.update(self.task, completed=done, description=self.what)
            return
        now = time.monotonic()
        self.first = done if self.first is None else self.first
        if self.shown and now - self.said >= EVERY_S and done > self.first:
            share = f"{done:.0f}"
            if self.total:
                left_s = (now - self.began) * (self.total - done) / (done - self.first)
                after, left = (timedelta(seconds=round(seconds)) for seconds in (now - self.began, left_s))
                share = f"{done / self.total:.0%} after {after}, {left} left"
            self.console.print(f"{self.what}: {share}")
            self.said = now
