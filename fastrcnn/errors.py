"""The one exception that wrong input raises: its message names the file, the object and the remedy."""


class FastRCNNError(Exception):
    """Something the user can fix: a bad file, box, key or setting. The tools print it as one sentence."""


class NotFiniteError(FastRCNNError):
    """Numbers that are NaN or infinite, which no file of ours may hold."""
