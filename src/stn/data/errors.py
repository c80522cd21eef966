"""What every data module raises when data are missing, corrupt or not what they should be."""


class DataError(Exception):
    """The message is one line: which file or source, what is wrong with it, what to do."""


def one_line(error: BaseException) -> str:
    """What an error says, without its line breaks; its name when it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
