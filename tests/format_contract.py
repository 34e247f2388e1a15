"""What every format must hold, as functions over one example file: for the built-in formats and for anybody's plugin.

A plugin author copies this file beside the plugin's tests (it needs mmserver and numpy only) and writes:

    @pytest.mark.parametrize("check", CHECKS)
    def test_the_format_keeps_the_contract(check):
        check(FormatCase(plugins=load_plugins(Path("my-plugins")), name="BTC_ret_1d_linear.json", data=b"..."))
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import msgspec
import numpy as np

from mmserver.formats import (
    Artifact,
    ArtifactFormat,
    FactorList,
    FloatRows,
    IcTable,
    InfoRecord,
    ModelFile,
    Parsed,
    Predictor,
    QuantileTable,
)
from mmserver.plugin_loading import Plugins

Outputs = Mapping[str, FloatRows]
PredictRows = Callable[[FloatRows], Outputs]

N_RANDOM_ROWS = 48
N_THREADS = 8
N_ROUNDS_PER_THREAD = 25
EVERY_CUT_BELOW_BYTES = 2_000
N_SAMPLED_CUTS = 150
PARSED_TYPES = {
    "factors": FactorList,
    "ic": IcTable,
    "info": InfoRecord,
    "model": ModelFile,
    "quantiles": QuantileTable,
}


@dataclass(frozen=True)
class FormatCase:
    """One good file, and what is known about it from elsewhere.

    `reference` is what the library that wrote a model predicts. `conversions` loads the bytes of each converter's target into a
    library and predicts with it; every converter for the model's kind must be there. `split_points` are (input, threshold)
    pairs where the model's answer changes. `cuts_show` is False for text of which a part is a good file too.
    """

    plugins: Plugins
    name: str
    data: bytes
    reference: PredictRows | None = None
    conversions: Mapping[str, Callable[[bytes], PredictRows]] = field(default_factory=dict)
    split_points: tuple[tuple[int, float], ...] = ()
    cuts_show: bool = True

    def claim(self) -> ArtifactFormat:
        """The format that claims the file."""
        claim = self.plugins.format_for(self.name) or self.plugins.format_for(self.name, quantiles=True)
        assert claim is not None, f"no format claims {self.name}"
        return claim

    def parse(self, data: bytes | None = None) -> Parsed:
        """The file's parsed value, or that of other bytes under its name."""
        claim = self.claim()
        group_key = "" if claim.role == "quantiles" else self.name.removesuffix(claim.suffix)
        return claim.parse(Artifact(name=self.name, group_key=group_key, data=self.data if data is None else data))

    def model(self) -> ModelFile | None:
        """The parsed model; None for files of another role."""
        parsed = self.parse()
        return parsed if isinstance(parsed, ModelFile) else None

    def loaded(self) -> tuple[ModelFile, Predictor] | None:
        """The model and a predictor for it; None when the file is no model or no plugin predicts with its kind."""
        model = self.model()
        predictor = self.plugins.load_predictor(model) if model else None
        return (model, predictor) if model and predictor else None


def probe_rows(n_features: int, split_points: tuple[tuple[int, float], ...] = ()) -> FloatRows:
    """Rows that find differences: usual values, missing ones, ±1e30, zeros, and both sides of every split point.

    Shapes:
        returns: n_rows × n_features, float32.
    """
    random = np.random.default_rng(20)
    usual = random.normal(size=(N_RANDOM_ROWS, n_features))
    holes = np.where(random.random(usual.shape) < 0.2, np.nan, usual)
    special = [np.full((1, n_features), value) for value in (np.nan, 0.0, -0.0, 1e30, -1e30)]
    mixed = random.choice([np.nan, 1e30, -1e30, 0.0], size=(16, n_features))
    at_splits = np.repeat(usual[:1], 3 * len(split_points), axis=0).astype(np.float32)
    for number, (dim, threshold) in enumerate(split_points):
        exact = np.float32(threshold)
        at_splits[3 * number : 3 * number + 3, dim] = (
            exact,
            np.nextafter(exact, np.float32(-np.inf)),
            np.nextafter(exact, np.float32(np.inf)),
        )
    return np.ascontiguousarray(np.concatenate([usual, holes, *special, mixed, at_splits]), dtype=np.float32)


# --- the checks -------------------------------------------------------------------------------------------------------


def check_parsing_gives_what_the_role_promises(case: FormatCase) -> None:
    """The parsed value is of its role's type, the same every time, and survives the worker's pipe."""
    parsed = case.parse()
    assert isinstance(parsed, PARSED_TYPES[case.claim().role])
    assert case.parse() == parsed
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(parsed), type=type(parsed)) == parsed
    if isinstance(parsed, ModelFile):
        assert parsed.n_features > 0
        assert parsed.n_outputs > 0
        assert parsed.feature_names is None or len(parsed.feature_names) == parsed.n_features


def check_predictions_have_the_promised_shapes(case: FormatCase) -> None:
    """Every output is n_rows × width, float32, with the same width for one row as for many; the input is left alone."""
    if (loaded := case.loaded()) is None:
        return
    model, predictor = loaded
    rows = probe_rows(model.n_features, case.split_points)
    given = rows.copy()
    outputs = predictor.predict(rows)
    assert predictor.n_features == model.n_features
    assert predictor.size_bytes > 0
    assert outputs
    assert rows.tobytes() == given.tobytes(), "predict changed its input"
    one = predictor.predict(rows[:1])
    for name, output in outputs.items():
        assert output.dtype == np.float32, name
        assert output.ndim == 2, name
        assert output.shape[0] == len(rows), name
        assert one[name].shape == (1, output.shape[1]), name


def check_a_row_does_not_depend_on_its_batch(case: FormatCase) -> None:
    """Alone, in halves, backwards: every row's result has the same bits."""
    if (loaded := case.loaded()) is None:
        return
    model, predictor = loaded
    rows = probe_rows(model.n_features, case.split_points)
    whole = predictor.predict(rows)
    half = len(rows) // 2
    parts = [predictor.predict(rows[:half]), predictor.predict(rows[half:])]
    alone = [predictor.predict(rows[at : at + 1]) for at in range(len(rows))]
    backwards = predictor.predict(np.ascontiguousarray(rows[::-1]))
    for name, output in whole.items():
        assert_same_bits(np.concatenate([part[name] for part in parts]), output, f"{name} of two halves")
        assert_same_bits(np.concatenate([one[name] for one in alone]), output, f"{name} of single rows")
        assert_same_bits(backwards[name][::-1], output, f"{name} of the rows backwards")


def check_eight_threads_agree_with_one(case: FormatCase) -> None:
    """One predictor shared by eight threads gives the bits that one thread gets."""
    if (loaded := case.loaded()) is None:
        return
    model, predictor = loaded
    rows = probe_rows(model.n_features, case.split_points)
    alone = predictor.predict(rows)

    def several_times(_: int) -> list[Outputs]:
        return [predictor.predict(rows) for _ in range(N_ROUNDS_PER_THREAD)]

    with ThreadPoolExecutor(N_THREADS) as threads:
        together = [outputs for many in threads.map(several_times, range(N_THREADS)) for outputs in many]
    for outputs in together:
        for name, output in alone.items():
            assert_same_bits(outputs[name], output, f"{name} of a thread")


def check_a_cut_file_is_refused(case: FormatCase) -> None:
    """A file cut at any length raises, or, where only an ending without meaning was cut off, gives the same value."""
    if not case.cuts_show:
        return
    whole = case.parse()
    for length in _cuts(len(case.data)):
        try:
            parsed = case.parse(case.data[:length])
        except Exception:  # a plugin may raise whatever it likes
            continue
        assert parsed == whole, f"cut at {length} of {len(case.data)} bytes, the file was read as something else"


def check_predictions_are_the_writing_library_s_own(case: FormatCase) -> None:
    """Our predictions have the bits of the library that wrote the model."""
    if case.reference is None:
        return
    loaded = case.loaded()
    assert loaded is not None, "there is a reference, but no plugin predicts with this kind of model"
    model, predictor = loaded
    rows = probe_rows(model.n_features, case.split_points)
    outputs = predictor.predict(rows)
    for name, expected in case.reference(rows).items():
        assert_same_bits(outputs[name], expected, name)


def check_a_conversion_agrees_with_its_source(case: FormatCase) -> None:
    """Each converter gives the same bytes every time, and what is loaded from them predicts the source's bits."""
    model = case.model()
    converters = [c for c in case.plugins.converters if model and c.kind == model.kind]
    missing = {c.target for c in converters} - set(case.conversions)
    assert not missing, f"the case does not say how to load {sorted(missing)}"
    for converter in converters:
        assert model is not None
        converted = converter.convert(model)
        assert converter.convert(model) == converted, converter.target
        loaded = case.loaded()
        assert loaded is not None, "a model that is converted must have a predictor to compare with"
        rows = probe_rows(model.n_features, case.split_points)
        outputs = loaded[1].predict(rows)
        for name, again in case.conversions[converter.target](converted)(rows).items():
            assert_same_bits(again, outputs[name], f"{name} of the {converter.target} form")


CHECKS = (
    check_parsing_gives_what_the_role_promises,
    check_predictions_have_the_promised_shapes,
    check_a_row_does_not_depend_on_its_batch,
    check_eight_threads_agree_with_one,
    check_a_cut_file_is_refused,
    check_predictions_are_the_writing_library_s_own,
    check_a_conversion_agrees_with_its_source,
)


def assert_same_bits(found: FloatRows, expected: FloatRows, what: str) -> None:
    """Equal to the bit; two NaN are equal whatever their payload."""
    assert found.dtype == expected.dtype == np.float32, what
    assert found.shape == expected.shape, what
    found, expected = np.ascontiguousarray(found), np.ascontiguousarray(expected)
    differ = (found.view(np.uint32) != expected.view(np.uint32)) & ~(np.isnan(found) & np.isnan(expected))
    assert not differ.any(), (
        f"{what}: {int(differ.sum())} of {differ.size} values differ, first at {np.argwhere(differ)[0]}"
    )


def _cuts(n_bytes: int) -> list[int]:
    if n_bytes <= EVERY_CUT_BELOW_BYTES:
        return list(range(n_bytes))
    edges = {*range(64), *range(n_bytes - 64, n_bytes)}
    sampled = np.random.default_rng(21).integers(0, n_bytes, N_SAMPLED_CUTS).tolist()
    return sorted(edges | set(sampled))
