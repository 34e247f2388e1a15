"""How the server's log lines look: one line of text, or one JSON object, for each event; never with an API key's secret."""

import json
import logging
import sys
from datetime import UTC, datetime

from mmserver.security.keys import without_keys
from mmserver.settings import Settings


class JsonLines(logging.Formatter):
    """One JSON object a record."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        entry = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return without_keys(json.dumps(entry, ensure_ascii=False))


class TextLines(logging.Formatter):
    """One line a record; control characters in messages, which names from files may bring, are escaped."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """The record, with its traceback below where there is one."""
        return without_keys(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's own name)
        """The record's line."""
        line = super().formatMessage(record)
        return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)


def configure_logging(settings: Settings) -> None:
    """Send everything from the configured level on to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if settings.log_format == "json" else TextLines())
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    for noisy, level in (
        ("apscheduler", logging.WARNING),
        ("alembic", logging.WARNING),
        ("waitress.queue", logging.ERROR),
    ):
        logging.getLogger(noisy).setLevel(max(level, logging.getLevelName(settings.log_level)))
