"""Write one file of this corpus with the libraries that are installed: `python write.py FILE PROTOCOL [COMPRESS]`.

Run in an environment of each generation: pandas 1.5 with numpy 1.24 and joblib 1.2, pandas 2.2 with numpy 1.26 and
joblib 1.4, pandas 3 with numpy 2 (without and with pyarrow, which changes how text columns are written). With COMPRESS
(zlib, lz4, …) joblib writes the file, else pickle does.
"""

import pickle
import sys
from pathlib import Path

import joblib
import numpy as np
import pandas as pd


def corpus_value() -> dict[str, object]:
    """What every file holds; `test_frames.py` spells out what must come back."""
    berlin = pd.to_datetime(["2020-01-01 00:30", "2020-06-01 00:00"]).tz_localize("Europe/Berlin")
    frame = pd.DataFrame(
        {
            "f8": [1.5, np.nan],
            "f4": np.array([0.25, -2], "f4"),
            "i8": [1, -2],
            "i4": np.array([3, 4], "i4"),
            "b": [True, False],
            "text": ["x", None],
            "when": pd.to_datetime(["2020-01-01 12:00", None]),
            "zoned": berlin,
            "utc": berlin.tz_convert("UTC"),
            "kind": pd.Categorical(["u", "v"]),
            "n": pd.array([1, None], dtype="Int64"),
            "s": pd.array(["p", None], dtype="string"),
        },
        index=pd.Index(["r1", "r2"], name="row"),
    )
    frame.insert(2, "f8b", [7.0, 8.0])  # a second float64 block
    return {
        "frame": frame,
        "ranged": pd.DataFrame({"a": [1, 2, 3]}),
        "series": pd.Series([1.0, 2.0], index=pd.date_range("2021-03-01", periods=2, tz="UTC"), name="pnl"),
        "multi": pd.Series([5, 6], index=pd.MultiIndex.from_tuples([("x", 1), ("y", 2)], names=["p", "q"])),
        "int_index": pd.Index([10, 20], name="k"),
        "array": np.arange(6.0).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "objects": np.array(["a", None, {"deep": 1}], dtype=object),
        "text_array": np.array(["ab", "c"]),
        "scalars": [np.float32(0.5), np.int64(-7), np.bool_(True), np.datetime64("2020-01-01")],
        "stamp": pd.Timestamp("2020-01-01 00:00:00.123456789", tz="UTC"),
        "delta": pd.Timedelta("1s"),
        "missing": [pd.NaT, pd.NA],
        "record": np.array([(1, 2.5)], dtype=[("a", "<i4"), ("b", "<f8")]),
    }


def main(path: Path, protocol: int, compress: str | None = None) -> None:
    """Write the corpus value to `path`."""
    if compress:
        joblib.dump(corpus_value(), path, compress=compress, protocol=protocol)
    else:
        path.write_bytes(pickle.dumps(corpus_value(), protocol))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:4])
