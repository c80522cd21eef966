"""The command line that all verbs share: key=value, --help, -v; a user's error ends in one line, not in a traceback."""

import functools
import logging
import os
import re
import sys
import textwrap
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments.config import CONF, compose_config, keys, options, quoted, resolved
from experiments.errors import explain

OVERRIDE = re.compile(r"[+~]{0,2}[\w./@:]+=|~")
CONFIGURED = ("reproduce", "sweep")  # these take the composed config itself, whose groups they read
PATHS = ("pack", "merge", "out", "readme", "weights")  # and all that end in _dir
KINDS = {bool: "true or false", int: "an integer", float: "a number", list: "a list, as [a,b]", str: "a name"}


def main(verb: Callable[..., Any]) -> None:
    """Runs a verb with the settings of conf/<its name>.yaml, changed by the key=value of the command line."""
    name, arguments = verb.__name__, sys.argv[1:]
    if {"--help", "-h"} & set(arguments):
        with errors_in_a_line():
            print(help_text(sys.modules[verb.__module__].__doc__, name))
        return
    verbose = "-v" in arguments
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a sign shows another in its place
        stream.reconfigure(errors="replace")
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s")
    logging.getLogger("pytorch_lightning").setLevel(logging.INFO if verbose else logging.ERROR)
    chosen = [argument for argument in arguments if argument.partition("=")[0] in described(name)[0]]
    with errors_in_a_line(name, verbose, chosen):
        flags, overrides = command_line([argument for argument in arguments if argument != "-v"], name)
        if flags:
            raise ValueError(f"{flags[0]!r} is not key=value; --help lists the keys")
        elif name == "train":  # whose settings may have several values
            verb(overrides)
        elif name in CONFIGURED:
            verb(compose_config(name, overrides))
        else:
            settings = named(compose_config(name, overrides), name)
            check_kinds(settings, keys(name))
            verb(settings)


@contextmanager
def errors_in_a_line(config: str = "train", verbose: bool = False, chosen: Sequence[str] = ()) -> Iterator[None]:
    """An error that the user can fix becomes one line on stderr and exit status 2, unless `verbose`.

    `config` and `chosen` are as in `explain`.
    """
    try:
        yield
        sys.stdout.flush()  # here, and not when Python ends, is a reader missed that has gone
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command continues from the last checkpoint")
    except BrokenPipeError:  # whoever reads has had enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        line = explain(error, config, chosen)
        if line is None or verbose:
            raise
        print(f"error: {line}", file=sys.stderr)
        sys.exit(2)


def named(config: DictConfig, name: str) -> dict:
    """The settings of conf/<name>.yaml, resolved, with the names of its groups' options in their place."""
    OmegaConf.set_struct(config, False)  # a group without an option has no key yet
    chosen = {group: config[group].name if group in config else None for group in described(name)[0]}
    return resolved(OmegaConf.merge(config, chosen))


def command_line(arguments: list[str], name: str) -> tuple[list[str], list[str]]:
    """Flags, and the overrides of conf/<name>.yaml as hydra's grammar reads them.

    A folder is taken as written, whatever signs it has; one not given is the checkout's, wherever the command is given.
    """
    flags = [argument for argument in arguments if not OVERRIDE.match(argument)]
    overrides = [_literal_path(argument) for argument in arguments if OVERRIDE.match(argument)]
    root = CONF.parent
    if Path.cwd() != root:
        given = {override.partition("=")[0] for override in overrides}
        usual = {key: value for key, value in keys(name).items() if value and _is_path(key) and key not in given}
        overrides += [f"{key}={quoted(str(root / value))}" for key, value in usual.items()]
    return flags, overrides


def _is_path(key: str) -> bool:
    return key.endswith("_dir") or key in PATHS


def _literal_path(override: str) -> str:
    key, _, value = override.partition("=")
    plain = value[:1] not in ("'", '"', "") and value != "null"
    return f"{key}={quoted(value)}" if plain and _is_path(key) else override


def check_kinds(settings: dict, usual: dict, within: str = "") -> None:
    """Raises: ValueError for a value of another kind than its usual one; a name may stand for a list of one."""
    for key, value in usual.items():
        given, kind = settings[key], type(value)
        if isinstance(value, str) and value.startswith("${"):  # of whatever kind that is
            continue
        if isinstance(value, dict):
            check_kinds(given, value, f"{within}{key}.")
        elif kind is list and isinstance(given, str):
            settings[key] = [given]
        elif value is not None and kind is not type(given) and not (kind is float and type(given) is int):
            raise ValueError(f"{within}{key} must be {KINDS[kind]}, got {given!r}")


def one_of(settings: dict, key: str, allowed: Collection[str]) -> str:
    """settings[key]. Raises: ValueError for a value that is not allowed."""
    if settings[key] not in allowed:
        raise ValueError(f"{key} must be one of {', '.join(allowed)}, got {settings[key]!r}")
    return settings[key]


def help_text(doc: str, name: str) -> str:
    """What a verb does, its groups with their options, and its keys with their usual values, as conf/ explains them."""
    groups, explained = described(name)
    parts = [doc.strip(), "Keys, as key=value, with their usual values:", "\n".join(explained.values())]
    if groups:
        fill = functools.partial(textwrap.fill, width=118, initial_indent="  ", subsequent_indent="      ")
        chosen = [fill(f"{group}={usual}: {', '.join(options(group))}") for group, usual in groups.items()]
        parts[1:1] = ["Groups, as group=option (options are files of conf/):", "\n".join(chosen)]
    parts.append("-v shows the traceback of an error. Folders are those of the checkout unless given.")
    return "\n\n".join(parts)


def described(name: str) -> tuple[dict[str, str], dict[str, str]]:
    """Of conf/<name>.yaml and those that it builds on: groups with their usual options; keys with their lines."""
    import yaml

    text = (CONF / f"{name}.yaml").read_text(encoding="utf-8")
    groups, explained, comment = {}, {}, ""
    for entry in yaml.safe_load(text).get("defaults", []):
        if isinstance(entry, dict):
            groups |= {g: (usual or "null").replace("???", "…") for g, usual in entry.items() if " " not in g}
        elif entry != "_self_":
            inherited = described(entry)
            groups, explained = groups | inherited[0], inherited[1]
    head = re.match(r"(#.*\n)*", text).end()
    for block in re.split(r"\n(?=\S)", text[head:].strip()):
        key, lines = block.partition(":")[0], textwrap.indent(comment + block.rstrip(), "  ")
        comment = f"{comment}{block}\n" if block.startswith("#") else ""
        if not comment and key not in ("defaults", "hydra"):
            explained.pop(key, None)
            explained[key] = lines
    return groups, explained
