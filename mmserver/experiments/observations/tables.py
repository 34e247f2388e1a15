"""The tables of the observation file, and how many rows go in at once."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

APPLICATION_ID = 0x4D4D4F42
"""In the file's header: "MMOB", observations of mmserver."""
VERSION = 3
"""`PRAGMA user_version` of the tables below."""

SUMS = (
    "n_served", "n_predictions",
    "error_x", "error_y", "latency_x", "latency_y", "join_x", "join_y", "label_x", "label_y", "return_x", "return_y",
    "paired_error_x", "paired_error_c", "paired_error_t",
    "paired_latency_x", "paired_latency_c", "paired_latency_t",
    "paired_label_x", "paired_label_c", "paired_label_t",
    "paired_return_x", "paired_return_c", "paired_return_t",
)  # fmt: skip
"""What is summed of each unit, arm and symbol; latencies in microseconds, pairs with the arm that answered."""

PREDICTION_COLUMNS = (
    "prediction_id", "at_us", "due_us", "experiment", "phase", "arm", "unit", "symbol", "model_name", "version",
    "direction", "confidence", "expected_return", "latency_us", "error", "is_washed_out",
    "shadow_direction", "shadow_expected_return", "shadow_latency_us", "shadow_error", "features",
)  # fmt: skip

UNIT_COLUMNS = ("experiment", "phase", "unit", "arm", "symbol", *SUMS)

_UNIT_SUMS = ",\n  ".join(
    f"{name} {'REAL' if name in ('return_y', 'paired_return_c', 'paired_return_t') else 'INTEGER'} NOT NULL"
    for name in SUMS
)

CREATE_HOURS = """
CREATE TABLE hour_sums (
  experiment INTEGER NOT NULL, phase INTEGER NOT NULL, hour INTEGER NOT NULL, arm INTEGER NOT NULL, sums BLOB NOT NULL,
  PRIMARY KEY (experiment, phase, hour, arm)
) WITHOUT ROWID;
"""
"""What came with version 2."""

MODEL_COLUMNS = (
    "model_name", "version", "day", "n_predictions", "n_errors", "latency_us", "n_labelled", "n_right", "n_returns", "returns",
)  # fmt: skip

CREATE_MODEL_DAYS = """
CREATE TABLE model_days (
  model_name TEXT NOT NULL,
  version TEXT NOT NULL,
  day INTEGER NOT NULL,
  n_predictions INTEGER NOT NULL,
  n_errors INTEGER NOT NULL,
  latency_us INTEGER NOT NULL,
  n_labelled INTEGER NOT NULL,
  n_right INTEGER NOT NULL,
  n_returns INTEGER NOT NULL,
  returns REAL NOT NULL,
  PRIMARY KEY (model_name, version, day)
) WITHOUT ROWID;
CREATE INDEX predictions_outside ON predictions (id) WHERE experiment IS NULL;
"""
"""What came with version 3."""

CREATE = f"""
CREATE TABLE marks (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE journals (name TEXT PRIMARY KEY, moved_bytes INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE predictions (
  id INTEGER PRIMARY KEY,
  prediction_id TEXT NOT NULL UNIQUE,
  at_us INTEGER NOT NULL,
  due_us INTEGER NOT NULL,
  experiment INTEGER,
  phase INTEGER NOT NULL,
  arm INTEGER,
  unit TEXT NOT NULL,
  symbol TEXT NOT NULL,
  model_name TEXT NOT NULL,
  version TEXT NOT NULL,
  direction INTEGER,
  confidence REAL,
  expected_return REAL,
  latency_us INTEGER NOT NULL,
  error TEXT,
  is_washed_out INTEGER NOT NULL,
  shadow_direction INTEGER,
  shadow_expected_return REAL,
  shadow_latency_us INTEGER,
  shadow_error TEXT,
  features BLOB NOT NULL
);
CREATE INDEX predictions_by_due ON predictions (due_us) WHERE experiment IS NOT NULL;
CREATE INDEX predictions_by_symbol ON predictions (symbol, due_us);
CREATE TABLE outcomes (
  prediction INTEGER PRIMARY KEY REFERENCES predictions (id) ON DELETE CASCADE,
  label INTEGER,
  realized_return REAL,
  at_us INTEGER NOT NULL,
  received_us INTEGER NOT NULL
);
CREATE TABLE units (
  experiment INTEGER NOT NULL,
  phase INTEGER NOT NULL,
  unit TEXT NOT NULL,
  arm INTEGER NOT NULL,
  symbol TEXT NOT NULL,
  {_UNIT_SUMS},
  PRIMARY KEY (experiment, phase, unit, arm, symbol)
) WITHOUT ROWID;
CREATE TABLE phase_totals (
  experiment INTEGER NOT NULL, phase INTEGER NOT NULL, totals BLOB NOT NULL, PRIMARY KEY (experiment, phase)
) WITHOUT ROWID;
CREATE TABLE symbol_totals (
  experiment INTEGER NOT NULL, phase INTEGER NOT NULL, symbol TEXT NOT NULL, totals BLOB NOT NULL,
  PRIMARY KEY (experiment, phase, symbol)
) WITHOUT ROWID;
{CREATE_HOURS}
CREATE TABLE prices (
  symbol TEXT NOT NULL, at_us INTEGER NOT NULL, price REAL NOT NULL, PRIMARY KEY (symbol, at_us)
) WITHOUT ROWID;
CREATE TABLE priced_symbols (symbol TEXT PRIMARY KEY, priced_until_us INTEGER NOT NULL) WITHOUT ROWID;
{CREATE_MODEL_DAYS}
"""

_ROWS_AT_ONCE = 100


def insert_rows(raw: Any, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, verb: str) -> None:
    """INSERT (`verb`: "INSERT OR IGNORE", …) many rows, hundreds with each statement.

    A statement lets go of the interpreter once, not once a row: each time, the thread that serves takes it for long.
    """
    head = f"{verb} INTO {table} ({', '.join(columns)}) VALUES "
    one = f"({', '.join('?' * len(columns))})"
    n_whole = len(rows) - len(rows) % _ROWS_AT_ONCE
    if n_whole:
        statement = head + ", ".join([one] * _ROWS_AT_ONCE)
        for start in range(0, n_whole, _ROWS_AT_ONCE):
            raw.execute(statement, list(chain.from_iterable(rows[start : start + _ROWS_AT_ONCE])))
    # Powers of two, so that there are few statements to prepare and keep.
    start, n_at_once = n_whole, _ROWS_AT_ONCE
    while start < len(rows):
        n_at_once = 1 << ((len(rows) - start).bit_length() - 1)
        values = list(chain.from_iterable(rows[start : start + n_at_once]))
        raw.execute(head + ", ".join([one] * n_at_once), values)
        start += n_at_once
