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
    input_shape: tuple[int, ...] | None = None
    """Shape of one row where it is not flat, such as (timesteps, features); its product is `n_features`. The factors name its
    last axis. Rows are flat everywhere inside, row-major: the predictor gives them their shape."""
    conversion: "Conversion | None" = None
    """Where the content was made from another library's model: from which, and how near it has to come."""
    summary: dict[str, Any] = {}
    """More facts to show beside the model; JSON-able."""
    probes: Probes | None = None

    @property
    def row_shape(self) -> tuple[int, ...]:
        """What one row looks like to clients: `input_shape`, or flat."""
        return self.input_shape or (self.n_features,)


class Conversion(msgspec.Struct, frozen=True, kw_only=True):
    """What a converted model was made from; its `probes` then hold the source's own outputs, and the core compares.

    Units:
        absolute, relative: a number of the converted model may differ from the source's by `absolute + relative * |source|`;
        it follows how far the source's column moves: below 1, `absolute` is of that, and `relative` of the distance from its middle.
        max_share_beyond: share of the probe rows that may have a number beyond it; float32 input moves a few rows of a tree
        model across a split.
    """

    source: str
    """Library, its version and what was converted, such as `torch 2.13.0 state dict`."""
    absolute: float = 1e-5
    relative: float = 1e-5
    max_share_beyond: float = 0.0


class ModelSource(msgspec.Struct, frozen=True, kw_only=True):
    """One model as it was handed in to be registered: its files by name, the one that is the model, and what was said of it.

    `options` are JSON values that the format asks for, such as `code` of a torch state dict. `may_unpickle` says that the setting
    `allow_unpickling` names this format and that the process is guarded against what a pickle may do; only the core sets it.
    """

    file_name: str
    files: dict[str, bytes]
    options: dict[str, Any] = {}
    may_unpickle: bool = False

    @property
    def content(self) -> bytes:
        """The bytes of the model's own file."""
        return self.files[self.file_name]


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


class ModelFormat(msgspec.Struct, frozen=True, kw_only=True):
    """How files of one library become a model that can be served, when they are registered one by one.

    `name` is the `model_type` that a client may name; a file is also found by the longest of the `suffixes`, which no two
    formats may share. `read` runs in a guarded process that has imported `modules` and opens no file: import them inside of
    functions, so that the server does not pay for them. `extra` is what to install (`mmserver[<extra>]`) where one of them is
    missing. `warm_up` is called once in that process before any job, with files still readable: what it makes the library
    import is then there.
    """

    name: str
    suffixes: tuple[str, ...]
    read: Callable[[ModelSource], ModelFile]
    modules: tuple[str, ...] = ()
    extra: str | None = None
    warm_up: Callable[[], None] | None = None


class Converter(msgspec.Struct, frozen=True, kw_only=True):
    """Gives a model of `kind` in the format that clients ask for with `?format=<target>`.

    `convert` gets the model and returns the bytes, deterministically; it raises NotConvertible for what the format
    cannot carry.
    """

    kind: str
    target: str
    media_type: str
    convert: Callable[[ModelFile], bytes]


class StoppableRun(Protocol):
    """One call of `predict` that another thread may end early."""

    def predict(self, rows: FloatRows) -> Mapping[str, FloatRows]:
        """As `Predictor.predict`; raises anything where it was stopped."""

    def stop(self) -> None:
        """End it soon; called by another thread, also where it has ended already."""


class Predictor(Protocol):
    """A model that is loaded and ready; shared by all threads, so it must not change after it was made.

    Four more members are used where a predictor has them. `accepts_missing: bool` says that NaN means "missing" to the model;
    without it, rows with a missing value are refused before they get here. `may_take_long: bool` says that what a row costs
    depends on its numbers, so that none is run by a thread that others wait for; `stoppable_run() -> StoppableRun` beside it
    has such a call stopped after `prediction_timeout_s`. `contributions(rows)` says how much each feature
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
            rows: n_rows × n_features, float32, C-contiguous; NaN is missing. A model with an `input_shape` reshapes them:
                `rows.reshape(-1, *input_shape)`.
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

    kind: Literal[
        "model_registered",
        "version_published",
        "version_registered",
        "version_described",
        "version_served",
        "stage_changed",
        "version_removed",
        "model_removed",
        "artifact_refused",
    ]
    model_name: str
    version: str | None = None
    group_key: str | None = None
    detail: dict[str, Any] = {}


class PageLink(msgspec.Struct, frozen=True):
    """A page that a plugin adds to the navigation: its title and its path."""

    title: str
    path: str
