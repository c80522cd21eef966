"""One base class for all that is read from files and command lines, and errors of one line."""

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError


class Checked(BaseModel):
    """A frozen group of values: no other keys, no conversions (but whole numbers are floats, too), no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Model = TypeVar("Model", bound=BaseModel)

# Pydantic's words for what is wrong most often, in ours.
MUST = {
    "greater_than_equal": "be {ge:g} or more",
    "greater_than": "be more than {gt:g}",
    "less_than_equal": "be {le:g} or less",
    "less_than": "be less than {lt:g}",
    "int_type": "be an integer",
    "float_type": "be a number",
    "bool_type": "be true or false",
    "string_type": "be a text",
    "finite_number": "be a finite number",
    "too_short": "have {min_length} or more entries",
    "model_type": "be a mapping",
    "model_attributes_type": "be a mapping",
    "dict_type": "be a mapping",
}


def checked(kind: type[Model], given: Any, where: str = "") -> Model:
    """`given` as a `kind`; `where` it stands is put before the names of keys.

    Raises: ValueError, one line, for the first key that is missing, unknown or invalid.
    """
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise ValueError(problem(error, given, where)) from error


def problem(error: ValidationError, given: Any, where: str = "") -> str:
    """The first thing that is wrong, as one line: which key, what is allowed, what it got."""
    first = error.errors(include_url=False)[0]
    key, got = _key(first, given, where), repr(first["input"])
    tag = first.get("ctx", {}).get("discriminator", "").strip("'")
    got = got if len(got) <= 200 else f"{got[:197]}..."
    match first["type"]:
        case "missing":
            return f"missing key {key!r}"
        case "extra_forbidden":
            return f"unknown key {key!r}"
        case "value_error":
            told = str(first["ctx"]["error"])
            return f"{key}: {told}" if key else told
        case "union_tag_not_found":
            return f"missing key '{key}.{tag}'"
        case "union_tag_invalid":
            allowed = first["ctx"]["expected_tags"].replace("'", "")
            return f"{key}.{tag} must be one of {allowed}, got {first['ctx']['tag']!r}"
        case "literal_error":
            allowed = first["ctx"]["expected"].replace("'", "").replace(" or ", ", ")
            return f"{key} must be one of {allowed}, got {got}"
        case kind:
            told = re.sub(r"^\w+ should ", "", first["msg"])
            must = MUST[kind].format(**first.get("ctx", {})) if kind in MUST else told
            return " ".join(f"{key or 'it'} must {must}, got {got}".split())


def _key(first: Mapping[str, Any], given: Any, where: str) -> str:
    """`a.b[0].c`; pydantic also names the member of a union that was tried, which is left out here."""
    key, node = where, given
    for i, part in enumerate(first["loc"]):
        last_one_missing = first["type"] == "missing" and i == len(first["loc"]) - 1
        places = node if isinstance(node, Mapping) else range(len(node)) if isinstance(node, list | tuple) else ()
        within = part in places
        if not within and not last_one_missing:
            continue
        key += f"[{part}]" if isinstance(part, int) else f".{part}" if key else str(part)
        node = node[part] if within else None
    return key
