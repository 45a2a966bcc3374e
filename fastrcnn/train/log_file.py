"""The run's log.txt."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path


class LogFile(logging.FileHandler):
    """A full disk ends the log, not the run: a checkpoint that finds no room will report it and stop in order."""

    def handleError(self, record: logging.LogRecord) -> None:
        logging.getLogger("fastrcnn").removeHandler(self)
        with contextlib.suppress(OSError):  # what is buffered has no room either
            self.close()
        logging.getLogger(__name__).warning("%s: cannot be written any more; free space", self.baseFilename)


@contextlib.contextmanager
def log_file(folder: Path) -> Iterator[None]:
    """Everything logged under `fastrcnn` also goes to folder/log.txt."""
    handler = LogFile(folder / "log.txt", encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("fastrcnn")
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
        handler.close()
