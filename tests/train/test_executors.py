"""Jobs end as values wherever they run, a lost one included, and no run is trained twice at once."""

import importlib
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from stn.many import pool
from stn.many.executors import ENGINES, extra, launch
from stn.many.pool import Finished, Progress
from stn.train.claim import claimed
from stn.train.stopped import Busy, OutOfTime
from tests.processes import alive, wait_until


@pytest.fixture(params=["submitit", "ray"])
def launcher(request, monkeypatch, tmp_path):
    """The settings of a launcher that is installed, as conf/launcher has them."""
    if request.param == "ray":
        pytest.importorskip("ray")
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # no token in the home folder
        return {"name": "ray", "address": None, "resources": {"num_cpus": 1, "num_gpus": 0}}
    submitit = pytest.importorskip("submitit")
    monkeypatch.setattr(submitit.core.core.Job, "_results_timeout_s", 0.5)  # how long the file of a lost job may take
    parameters = {"timeout_min": 1, "gpus_per_node": 0, "slurm_partition": None}
    return {"name": "submitit", "cluster": "local", "folder": str(tmp_path / "jobs"), "parameters": parameters}


def test_local_workers_share_the_gpus_of_this_machine(monkeypatch, tmp_path):
    """Two workers, each of which waits for the other: one sees GPU 3, the other GPU 5."""
    (tmp_path / "job_that_meets.py").write_text(
        "import os, pathlib, time\n"
        "def job(stack, deadline, progress):\n"
        "    here = pathlib.Path(__file__).parent\n"
        "    (here / f'{stack[0]}.met').touch()\n"
        "    until = time.time() + 60\n"
        "    while len(list(here.glob('*.met'))) < 2 and time.time() < until:\n"
        "        time.sleep(0.05)\n"
        "    return [os.environ['CUDA_VISIBLE_DEVICES']]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(pool, "visible_gpus", lambda: ["3", "5"])
    job = importlib.import_module("job_that_meets").job
    ended = [event for event in pool.run_all([["a"], ["b"]], 2, job=job) if isinstance(event, Finished)]
    assert sorted(event.records[0] for event in ended) == ["3", "5"]


def test_a_local_job_that_raises_is_lost_or_is_late_costs_itself_alone(monkeypatch, tmp_path):
    (tmp_path / "job_that_is_lost.py").write_text(
        "import os, signal\n"
        "def job(stack, deadline, progress):\n"
        "    progress(7)\n"
        "    if stack[0] in 'ad':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    if stack[0] == 'c':\n"
        "        raise ValueError('no room')\n"
        "    return [(stack[0], os.environ['CUDA_VISIBLE_DEVICES'])]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(pool, "visible_gpus", lambda: ["3"])
    job = importlib.import_module("job_that_is_lost").job
    events = list(pool.run_all([[name] for name in "abcde"], 2, job=job))
    ended = sorted((event for event in events if isinstance(event, Finished)), key=lambda event: event.index)
    assert [event.records for event in ended] == [None, [("b", "3")], None, None, [("e", "3")]]
    assert all("worker process was lost" in str(ended[k].error) for k in (0, 3))
    assert (type(ended[2].error), str(ended[2].error)) == (ValueError, "no room")
    late = list(pool.run_all([["b"], ["e"]], 1, time.time() - 1, job))
    assert [(event.records, type(event.error)) for event in late] == [(None, OutOfTime)] * 2
    assert {event for event in events if isinstance(event, Progress)} >= {Progress(k, 7) for k in (1, 2, 4)}


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc to see the workers")
@pytest.mark.parametrize("how", ["ctrl+c", "SIGINT", "SIGKILL"])
def test_workers_end_with_their_caller_and_begin_nothing_more(tmp_path, how):
    """A job takes forever; were a worker to go on, it would begin one of the other jobs, or the caller wait for it."""
    (tmp_path / "job_without_end.py").write_text(
        "import os, pathlib, time\n"
        "from stn.many.pool import run_all\n"
        "def job(stack, deadline, progress):\n"
        "    begun = pathlib.Path(__file__).parent / f'{stack[0]}.begun'\n"
        "    begun.with_suffix('.tmp').write_text(str(os.getpid()))\n"
        "    begun.with_suffix('.tmp').rename(begun)\n"
        "    time.sleep(600)\n"
        "if __name__ == '__main__':\n"
        "    from job_without_end import job\n"
        "    list(run_all([[name] for name in 'abcdef'], 2, job=job))\n"
    )
    caller = subprocess.Popen(
        [sys.executable, tmp_path / "job_without_end.py"], start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_until(lambda: len(list(tmp_path.glob("*.begun"))) == 2, 60)
        begun = sorted(tmp_path.glob("*.begun"))
        if how == "ctrl+c":
            os.killpg(caller.pid, signal.SIGINT)
        else:
            caller.send_signal(getattr(signal, how))
        error = caller.communicate(timeout=60)[1]
        workers = [int(file.read_text()) for file in begun]
        wait_until(lambda: not any(alive(pid) for pid in workers), 60)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(caller.pid, signal.SIGKILL)
    assert sorted(tmp_path.glob("*.begun")) == begun
    assert error.count("Traceback") <= 1  # the caller's


@pytest.mark.parametrize(
    ("named", "count", "wanted"),
    [
        (None, 0, []),
        (None, 2, ["0", "1"]),
        ("2, 7", 2, ["2", "7"]),
        ("", 0, []),
        ("-1", 0, []),
        ("GPU-ab", 1, ["GPU-ab"]),
    ],
)
def test_the_visible_gpus_are_those_that_cuda_would_use(monkeypatch, named, count, wanted):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert pool.visible_gpus() == wanted


@pytest.mark.filterwarnings("ignore")  # of ray and its dependencies
def test_every_job_ends_as_what_it_returned_or_what_ended_it(launcher, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def job(stack, deadline, progress):  # a function in a function travels by value
        if stack == ["kill"]:
            os.kill(os.getpid(), signal.SIGKILL)
        if stack == ["raise"]:
            raise ValueError("no room")
        return [{"name": name, "folder": os.getcwd()} for name in stack]

    stacks = [["kill"], ["raise"], ["a", "b"], ["c"]]
    events = list(launch(stacks, 2, None, launcher, job))
    assert all(isinstance(event, Finished) for event in events)
    killed, raised, two, one = sorted(events, key=lambda event: event.index)
    assert killed.records is None
    assert isinstance(killed.error, RuntimeError)
    assert "lost" in str(killed.error) or "ended without a result" in str(killed.error)
    assert (type(raised.error), str(raised.error)) == (ValueError, "no room")
    assert two == Finished(2, [{"name": "a", "folder": str(tmp_path)}, {"name": "b", "folder": str(tmp_path)}], None)
    assert one.records[0]["name"] == "c"


class Here:
    """An engine that runs a job when it is asked for its outcome, and counts how many are under way."""

    def __init__(self, launcher, workers):
        self.running, self.most, self.cancelled, self.closed = 0, 0, [], False
        launcher["engine"] = self

    def start(self, function, *arguments):
        self.running += 1
        self.most = max(self.most, self.running)
        return function, arguments

    def outcome(self, job):
        self.running -= 1
        function, arguments = job
        return function(*arguments)

    def cancel(self, job):
        self.cancelled.append(job[1][1])

    def close(self):
        self.closed = True


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setitem(ENGINES, "here", Here)
    monkeypatch.setattr("stn.many.executors.POLL_S", 0)
    return {"name": "here"}


def test_no_more_jobs_than_workers_are_under_way(here):
    events = list(launch(list("abcdefg"), 3, None, here, lambda stack, *_: [stack]))
    assert [event.records for event in events] == [[letter] for letter in "abcdefg"]
    assert here["engine"].most == 3
    assert here["engine"].closed


def test_after_the_deadline_nothing_starts(here):
    (event,) = launch(["a"], 1, time.time() - 1, here, lambda *_: pytest.fail("it ran"))
    assert isinstance(event.error, OutOfTime)


def test_jobs_of_a_command_that_ends_early_are_cancelled(here):
    events = launch(list("abc"), 2, None, here, lambda stack, *_: [stack])
    next(events)
    events.close()
    assert here["engine"].cancelled == ["b"]  # c was not started
    assert here["engine"].closed


def test_a_missing_extra_and_an_unknown_launcher_say_so_in_a_line():
    with pytest.raises(ValueError, match=r"^no_such_package is not installed: .*\[sweeps\]'$"):
        extra("no_such_package", "sweeps")
    with pytest.raises(ValueError, match=r"^launcher must be one of local, submitit, ray, got 'cloud'$"):
        launch([], 1, None, {"name": "cloud"})


def test_a_run_that_another_process_trains_is_refused_until_that_ends(settings_of):
    stack = [settings_of("mnist_r", "fcn"), settings_of("mnist_r", "cnn")]
    with claimed(stack):
        with pytest.raises(Busy, match="mnist_r/cnn/smoke/seed0: another process"), claimed(stack[1:]):
            pass
        with claimed([settings_of("mnist_e", "fcn")]):
            pass
    with claimed(stack):
        pass
