"""The one exception that wrong input raises: its message names the file, the object and the remedy."""


class FastRCNNError(Exception):
    """Something the user can fix: a bad file, box, key or setting. The tools print it as one sentence."""

    def __init__(self, message: str) -> None:
        """`message` may hold the name of a file that is not UTF-8; such bytes are written out, so that it can print."""
        super().__init__(message.encode("utf-8", "backslashreplace").decode())
        self.said: bool | None = None  # whether another rank of the run (ranks.py) says the same; None: not known


class NotFiniteError(FastRCNNError):
    """Numbers that are NaN or infinite, which no file of ours may hold."""

    iteration: int | None = None  # of training that they came from
