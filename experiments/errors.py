"""User errors in one line that says what is allowed."""

import difflib
import errno
import re
from collections.abc import Sequence

from omegaconf import OmegaConf

from experiments.config import CONF, compose_config, options
from stn.validation import Checked, checked

REMEDIES = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room, your quota is used up",
    errno.EFBIG: "allow larger files (ulimit -f)",
    errno.EACCES: "make that folder writable, or choose another",
    errno.EROFS: "make that file system writable, or choose another",
}


def explain(error: Exception, config: str = "train", chosen: Sequence[str] = ()) -> str | None:
    """One line for an error that the user can fix; None for one that is a bug.

    `config` is the file of conf/ that the verb's overrides concern; `chosen` are those that choose from a group.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from stn.data.errors import DataError
    from stn.settings import WrongModel
    from stn.train.stopped import Busy

    if isinstance(error, HydraException | OmegaConfBaseException):
        return _explain_config(error, config, chosen)
    if isinstance(error, WrongModel):
        return f"{error}; its models: {', '.join(_models_read_as(error.kind))}"
    if isinstance(error, OSError | DataError | ValueError | Busy | YAMLError):
        return " ".join(str(error).split()) + (_remedy(error) or _remedy(error.__cause__))
    return None


def _models_read_as(kind: type[Checked]) -> list[str]:
    """The files of conf/model that a family reads."""

    def fits(name: str) -> bool:
        try:
            checked(kind, OmegaConf.to_container(OmegaConf.load(CONF / "model" / f"{name}.yaml")))
        except ValueError:
            return False
        return True

    return list(filter(fits, options("model")))


def _remedy(error: BaseException | None) -> str:
    """What to do about an error of the file system, where it is known."""
    remedy = REMEDIES.get(error.errno) if isinstance(error, OSError) else None
    return f"; {remedy}, then give the same command again" if remedy else ""


def _explain_config(error: Exception, config: str, chosen: Sequence[str]) -> str:
    """Which group, option or key was wrong, and which there are."""
    message = " ".join(str(error).split())
    if match := re.search(r"Ambiguous value for argument '([\w./]+)=([^']*)'", message):
        return f"{match[1]}={match[2]}: several values are {match[1]}=[{match[2]}]"
    if match := re.search(r"Interpolation key 'protocol\.notes(\.\w+)?' not found", message):
        return f"this protocol lacks the line notes{match[1] or ''}, which says what it is"
    if match := re.search(r"Could not find '(\w+)/([^']*)'", message):
        group, option = match.groups()
        return f"{group}={option} does not exist; allowed: {', '.join(options(group))}"
    if match := re.search(r"You must specify '(\w+)'", message):
        group = match[1]
        return f"{group}=… is missing; allowed: {', '.join(options(group))}"
    if match := re.search(r"Interpolation key 'protocol\.(\w+)' not found", message):
        protocols = {name: OmegaConf.load(CONF / "protocol" / f"{name}.yaml") for name in options("protocol")}
        having = [name for name, protocol in protocols.items() if match[1] in protocol]
        return f"this protocol says nothing about {match[1]} tasks; allowed: protocol={', '.join(having)}"
    if match := re.search(r"Could not override '([\w.]+)'", message):
        return _explain_key(match[1], config, chosen)
    return message


def _explain_key(key: str, config: str, chosen: Sequence[str]) -> str:
    """An unknown setting: the settings beside it, or the groups when it is a first name."""
    from experiments.grid import jobs_of

    usual = {"train": ["task=mnist_r", "model=fcn"], "sweep": ["sweep=localiser"]}  # of groups without a usual choice
    node = OmegaConf.to_container(compose_config(config, [*usual.get(config, []), *jobs_of(list(chosen))[0]]))
    *parents, name = key.split(".")
    for depth, parent in enumerate(parents):
        if not isinstance(node.get(parent), dict):
            parents, name = parents[:depth], parent
            break
        node = node[parent]
    if key.startswith("recipe."):
        return f"{key}: the settings of a recipe are given as protocol.<family>.{key.removeprefix('recipe.')}"
    parent, allowed = ".".join(parents), sorted(node)
    there = ".".join([*parents, name])
    if there == key and name in node:
        return f"{key} is a setting of some of {' '.join(chosen)} only"
    if name in node:
        return f"{there} has no settings of its own; {key} does not exist"
    close = difflib.get_close_matches(name, allowed, 1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    where = f" in {parent}" if parent else ""
    return f"there is no setting {name!r}{where}{hint}; allowed: {', '.join(allowed)}"
