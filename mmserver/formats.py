"""The value types that hooks exchange with the core; all of them are frozen and cross the worker's pipe as MessagePack.

A plugin turns the bytes of one artifact file into one of the parsed types below. It never opens files, keeps nothing, and
may raise whatever it likes: the core runs it in a guarded worker process and turns any error into a refusal of that file.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

Role: TypeAlias = Literal["factors", "ic", "info", "model", "quantiles"]
"""What a file says about its group; `quantiles` files belong to a venue instead of a group."""

Scalar: TypeAlias = str | int | float | bool | None
FloatRows: TypeAlias = npt.NDArray[np.float32]


class Artifact(msgspec.Struct, frozen=True):
    """One file as it was read: its base name, the group key in that name, and its private bytes."""

    name: str
    group_key: str
    data: bytes


class FactorList(msgspec.Struct, frozen=True, tag=True):
    """Factor names in input order: the index is the dimension."""

    factors: tuple[str, ...]


class IcTable(msgspec.Struct, frozen=True, tag=True):
    """Information coefficients by factor.

    Shapes:
        rows: one tuple a factor, as long as `columns`; empty cells and NaN are None.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Scalar, ...], ...]
    factor_column: str


class InfoRecord(msgspec.Struct, frozen=True, tag=True):
    """What the producer wrote about the training, as a JSON-able mapping; non-finite numbers are None."""

    values: dict[str, Any]


class Probes(msgspec.Struct, frozen=True):
    """Rows to try a loader with, and what the model gives for them.

    Shapes:
        rows: n_rows × n_features, None where the value is missing (NaN).
        outputs: name → n_rows × width; `margin` is the sum of the leaves before any link function, `prediction` what
            the library's own predict returns. Every number is a float32 that its decimal text gives back exactly.
    """

    rows: list[list[float | None]]
    outputs: dict[str, list[list[float]]]


class ModelFile(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """A parsed model in the canonical form of its `kind`, checked so far that its bytes may meet native code.

    `content` is what converters and predictors get: for kind `xgboost` the text of an XGBoost JSON model that holds only
    the trees that the producer's own predict uses.
    """

    kind: str
    content: bytes
    n_features: int
    n_outputs: int
    objective: str
    library_version: str
    n_trees: int = 0
    feature_names: tuple[str, ...] | None = None
    missing: float | None = None
    """An input value that means "missing" besides NaN (scikit-learn wrappers have it); None: NaN only."""
    best_iteration: int | None = None
    """Index of the last boosting iteration kept, where early stopping cut the rest."""
    summary: dict[str, Any] = {}
    """More facts to show beside the model; JSON-able."""
    probes: Probes | None = None


class QuantileTable(msgspec.Struct, frozen=True, tag=True):
    """Order-size thresholds of one venue: symbol → (medium, large), in quote notional, 0 < medium < large."""

    symbols: dict[str, tuple[float, float]]


Parsed: TypeAlias = FactorList | IcTable | InfoRecord | ModelFile | QuantileTable


class ArtifactFormat(msgspec.Struct, frozen=True, kw_only=True):
    """A claim on file names, and how to read such files.

    `suffix` is how the name ends; what stands before it is the group key. No two formats may claim one suffix of one role.
    A format with `derived_from` is another form of the same content (`_model.json` of `_model.pkl`): it is used
    where it is not older than the file it is derived from, and ignored otherwise.
    """

    name: str
    suffix: str
    role: Role
    parse: Callable[[Artifact], Parsed]
    derived_from: str | None = None


class Converter(msgspec.Struct, frozen=True, kw_only=True):
    """Gives a model of `kind` in the format that clients ask for with `?format=<target>`.

    `convert` gets the model and returns the bytes, deterministically; it raises NotConvertible for what the format
    cannot carry.
    """

    kind: str
    target: str
    media_type: str
    convert: Callable[[ModelFile], bytes]


class Predictor(Protocol):
    """A model that is loaded and ready; shared by all threads, so it must not change after it was made.

    Two more members are used where a predictor has them. `accepts_missing: bool` says that NaN means "missing" to the model;
    without it, rows with a missing value are refused before they get here. `contributions(rows)` says how much each feature
    moves each output's margin, and last what the model gives without any: n_rows × n_outputs × (n_features + 1), adding
    up to the margin; it may raise ValueError for rows that it cannot explain.
    """

    @property
    def n_features(self) -> int:
        """How many columns `predict` takes."""

    @property
    def size_bytes(self) -> int:
        """Memory that it holds, for the cache's bound."""

    def predict(self, rows: FloatRows) -> Mapping[str, FloatRows]:
        """All outputs for all rows.

        Shapes:
            rows: n_rows × n_features, float32, C-contiguous; NaN is missing.
            returns: output name → n_rows × width, float32; a row's result does not depend on the others.
        """


Direction: TypeAlias = Literal["HOLD", "BUY", "SELL"]


class Decision(msgspec.Struct, frozen=True):
    """What one row of output means.

    Units:
        confidence: how likely the direction is right, in [0, 1]; probability: what the model itself gives the direction, in
        [0, 1], None for a regressor; expected_return: in the unit of the model's return, None for a pure classifier.
        What there is no ground for is None.
    """

    direction: Direction
    confidence: float | None
    probability: float | None
    expected_return: float | None


class Interpreter(Protocol):
    """What a model's outputs mean; shared by all threads, so it must not change after it was made."""

    @property
    def direction_from(self) -> str:
        """What the direction is made of, in a few words; shown in `model_info`."""

    @property
    def confidence_from(self) -> str | None:
        """What the confidence is made of; None where there is none."""

    def decide(self, outputs: Mapping[str, FloatRows], dead_band: float) -> Sequence[Decision]:
        """One decision a row, which does not depend on the other rows.

        Shapes:
            outputs: name → n_rows × width, as the predictor gave them; all numbers are finite.

        Units:
            dead_band: an expected return of this size or smaller, up or down, is HOLD.
        """


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened to a model, after it was committed."""

    kind: Literal["model_registered", "version_published", "version_served", "model_removed", "artifact_refused"]
    model_name: str
    version: str | None = None
    group_key: str | None = None
    detail: dict[str, Any] = {}


class PageLink(msgspec.Struct, frozen=True):
    """A page that a plugin adds to the navigation: its title and its path."""

    title: str
    path: str
