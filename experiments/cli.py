"""What all verbs share: user errors end in one line that says what is allowed, never in a traceback."""

import difflib
import errno
import functools
import logging
import os
import re
import sys
from collections.abc import Callable

from omegaconf import OmegaConf

from experiments.config import CONF, compose_config, options

PLUGINS = {  # which of hydra's there may be
    "launcher": "pip install -e '.[sweeps]' brings joblib, submitit_local and submitit_slurm, '.[ray]' brings ray",
    "sweeper": "experiments.sweep searches with Optuna",
}


REMEDIES = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room, your quota is used up",
    errno.EFBIG: "allow larger files (ulimit -f)",
    errno.EACCES: "make that folder writable, or choose another",
    errno.EROFS: "make that file system writable, or choose another",
}


def main(verb: Callable[[], None], config: str = "train") -> None:
    """Runs a verb; an error that the user can mend becomes one line on stderr and exit status 2.

    `config` is the file of conf/ that the verb's overrides concern. `-v` on the command line shows the traceback.
    """
    verbose = "-v" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "-v"]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hydra raises instead of printing its own several lines
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s")
    logging.getLogger("pytorch_lightning").setLevel(logging.INFO if verbose else logging.ERROR)
    try:
        verb()
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command continues from the last checkpoint")
    except Exception as error:
        line = explain(error, config)
        if line is None or verbose:
            raise
        _stop(line)


def job(function: Callable) -> Callable:
    """For a `hydra.main` job: a user's error in a single run ends here, before hydra adds lines of its own.

    In a multirun it is raised on, so that the other jobs go on.
    """

    @functools.wraps(function)
    def wrapped(config):
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        try:
            return function(config)
        except Exception as error:
            line = explain(error)
            single = HydraConfig.get().mode == RunMode.RUN
            if line is None or not single or logging.getLogger().isEnabledFor(logging.INFO):
                raise
            _stop(line)

    return wrapped


def _stop(line: str) -> None:
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)


def explain(error: Exception, config: str = "train") -> str | None:
    """One line for an error that the user can mend; None for one that is a bug."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from stn.data.errors import DataError
    from stn.train.stopped import Busy

    if isinstance(error, HydraException | OmegaConfBaseException):
        return _explain_config(error, config)
    if isinstance(error, OSError):
        return _explain_file(error)
    if isinstance(error, DataError | ValueError | Busy):
        return " ".join(str(error).split())
    return None


def _explain_file(error: OSError) -> str:
    """What the system says of a file, and the remedy where it is known."""
    line = " ".join(str(error).split())
    if remedy := REMEDIES.get(error.errno):
        line = f"{line}; {remedy}, then give the same command again"
    return line


def _explain_config(error: Exception, config: str) -> str:
    """Which group, option or key was wrong, and which there are."""
    message = " ".join(str(error).split())
    if found := re.search(r"Could not find 'hydra/(launcher|sweeper)/(\w+)'", message):
        return f"hydra/{found[1]}={found[2]} is not installed; {PLUGINS[found[1]]}"
    if found := re.search(r"Could not find '(\w+)/([^']*)'", message):
        group, option = found.groups()
        return f"{group}={option} does not exist; allowed: {', '.join(options(group))}"
    if found := re.search(r"You must specify '(\w+)'", message):
        group = found[1]
        return f"{group}=… is missing; allowed: {', '.join(options(group))}"
    if found := re.search(r"Interpolation key 'protocol\.(\w+)' not found", message):
        having = [
            name for name in options("protocol") if found[1] in OmegaConf.load(CONF / "protocol" / f"{name}.yaml")
        ]
        return f"this protocol says nothing about {found[1]} tasks; allowed: protocol={', '.join(having)}"
    if found := re.search(r"Could not override '([\w.]+)'", message):
        return _explain_key(found[1], config)
    return message


def _explain_key(key: str, config: str) -> str:
    """An unknown setting: the settings beside it, or the groups when it is a first name."""
    parent, _, name = key.rpartition(".")
    groups = {"train": ["task=mnist_r", "model=fcn"], "sweep": ["sweep=localiser"]}  # those without a usual choice
    node = OmegaConf.to_container(compose_config(config, groups.get(config, [])))
    for part in parent.split(".") if parent else []:
        node = node.get(part, {}) if isinstance(node, dict) else {}
    allowed = sorted(node) if isinstance(node, dict) else []
    close = difflib.get_close_matches(name, allowed, 1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    where = f" in {parent}" if parent else ""
    return f"there is no setting {name!r}{where}{hint}; allowed: {', '.join(allowed) or f'none, see {CONF.name}/'}"
