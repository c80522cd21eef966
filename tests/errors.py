"""What tests ask of an error."""


def check_error(error, *parts):
    """That its message is one line, with these parts in it."""
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message
