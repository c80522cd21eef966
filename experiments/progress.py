"""How far a command is: a bar on a terminal, elsewhere a line now and then."""

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

OUT_OF_TIME = 75  # exit status (EX_TEMPFAIL) when the time budget is used up: the same command goes on
EVERY_S = 60.0  # a line, where there is no terminal

console = Console(highlight=False, soft_wrap=True)


class Bar:
    """`with Bar(total) as bar`, then bar.update(done, what): share, time so far and time left."""

    def __init__(self, total: float, shown: bool = True) -> None:
        self.total, self.shown = total, shown
        self.began = self.said = time.monotonic()
        self.first: float | None = None  # what was done already when it began
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        self.bar = Progress(
            *columns, TextColumn("left"), TimeRemainingColumn(), console=console, speed_estimate_period=300
        )
        self.task = self.bar.add_task("", total=total)

    def __enter__(self) -> "Bar":
        if self.shown and console.is_terminal:
            self.bar.start()
        return self

    def __exit__(self, *_) -> None:
        if self.bar.live.is_started:  # else it would print an empty line
            self.bar.stop()

    def update(self, done: float, what: str) -> None:
        if console.is_terminal:
            self.bar.update(self.task, completed=done, description=what)
            return
        now = time.monotonic()
        self.first = done if self.first is None else self.first
        if self.shown and now - self.said >= EVERY_S and done > self.first:
            left_s = (now - self.began) * (self.total - done) / (done - self.first)
            console.print(f"{what}: {done / self.total:.0%} after {_clock(now - self.began)}, {_clock(left_s)} left")
            self.said = now


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
