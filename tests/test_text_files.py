"""Text is read and written as UTF-8 wherever the suite runs, on Windows and in the POSIX locale too."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for folder in ("src", "experiments", "tools") for path in (ROOT / folder).rglob("*.py"))
ENCODING_AT = {
    "open": 3,
    "fdopen": 3,
    "read_text": 0,
    "write_text": 1,
    "NamedTemporaryFile": 2,
}  # its place, if not named


def without_encoding(source: str) -> list[int]:
    """The lines that open a text file without saying in which encoding."""
    lines = []
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        if name not in ENCODING_AT or _owner(call) in ("Image", "os", "tarfile", "zipfile", "h5d"):
            continue
        named = {keyword.arg: keyword.value for keyword in call.keywords}
        binary = any("b" in text for text in _modes(call, named)) or (
            name == "NamedTemporaryFile" and "mode" not in named
        )
        if not binary and "encoding" not in named and len(call.args) <= ENCODING_AT[name]:
            lines.append(call.lineno)
    return lines


def _owner(call: ast.Call) -> str:
    return getattr(getattr(call.func, "value", None), "id", "")


def _modes(call: ast.Call, named: dict) -> list[str]:
    """Constants among the arguments that may be a mode."""
    values = [*call.args, *(value for name, value in named.items() if name == "mode")]
    texts = [value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str)]
    return [text for text in texts if set(text) <= set("rwxabt+")]


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("open(path)", [1]),
        ("open(path, 'w')", [1]),
        ("open(path, 'rb')", []),
        ("path.open(mode='wb')", []),
        ("\npath.open('w', encoding='utf-8')", []),
        ("x = path.read_text()\npath.write_text(x)", [1, 2]),
        ("path.read_text(encoding='utf-8')", []),
        ("path.read_text('utf-8')", []),
        ("Image.open(path)", []),
    ],
)
def test_the_check_itself(source, lines):
    assert without_encoding(source) == lines


def test_every_text_file_is_opened_with_an_encoding():
    assert len(FILES) > 50
    found = [f"{path.relative_to(ROOT)}:{line}" for path in FILES for line in without_encoding(path.read_text("utf-8"))]
    assert found == []
