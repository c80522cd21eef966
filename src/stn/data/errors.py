"""What every data module raises when data are missing, corrupt or not what they should be."""


class DataError(Exception):
    """The message is one line: which file or source, what is wrong with it, what to do."""
