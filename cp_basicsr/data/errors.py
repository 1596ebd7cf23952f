"""The one exception that bad image data raises."""


class DataError(ValueError):
    """Image data on disk, or the option block that names it, cannot be used; the message names the file or key.

    It is made from one string, so that a DataLoader can raise it again in the main process.
    """
