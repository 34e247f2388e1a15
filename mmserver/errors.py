"""Every error that mmserver raises on purpose, in one tree.

A branch says what the caller can do; a leaf says what happened and carries a stable `code`, a message template and the
values for it. Nothing here knows HTTP: `web/errors.py` maps branches to statuses, once. All of them survive pickling and
the worker's pipe: (code, values) is the whole error.
"""

from typing import Any, ClassVar


class MmserverError(Exception):
    """The root: an error with a stable code, a template, and the values that fill it."""

    code: ClassVar[str] = "internal"
    template: ClassVar[str] = "internal error"

    def __init__(self, **values: Any) -> None:
        self.values = values
        super().__init__(self.template.format(**values))

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.values))


def _rebuild(leaf: type[MmserverError], values: dict[str, Any]) -> MmserverError:
    return leaf(**values)


def error_from_code(code: str, values: dict[str, Any]) -> MmserverError:
    """The error that (code, values) came from; an unknown code gives a plain MmserverError."""
    pending = [MmserverError]
    while pending:
        leaf = pending.pop()
        if leaf.code == code and "code" in vars(leaf):
            return leaf(**values)
        pending.extend(leaf.__subclasses__())
    return MmserverError()


# --- branches: what the caller can do -----------------------------------------------------------------------------------


class NotFound(MmserverError):
    """Name something that exists."""

    code = "not_found"
    template = "not found"


class Gone(MmserverError):
    """It was here; it will not come back by itself."""

    code = "gone"
    template = "gone"


class Conflict(MmserverError):
    """The name or state is taken; choose another or change it first."""

    code = "conflict"
    template = "conflict"


class Invalid(MmserverError):
    """Correct the input and send it again."""

    code = "invalid"
    template = "invalid input"


class Unprocessable(MmserverError):
    """The request is well-formed, but the model cannot work with it; correct what is named."""

    code = "unprocessable"
    template = "unprocessable"


class TooLarge(MmserverError):
    """Send less at once."""

    code = "too_large"
    template = "too large"


class PreconditionFailed(MmserverError):
    """It was changed meanwhile; read it again, then decide."""

    code = "precondition_failed"
    template = "precondition failed"


class Unauthenticated(MmserverError):
    """Say who you are, with an API key."""

    code = "unauthenticated"
    template = "unauthenticated"


class Forbidden(MmserverError):
    """This instance or this caller may not do that."""

    code = "forbidden"
    template = "forbidden"


class Unavailable(MmserverError):
    """Try again later; `retry_after_s` says when."""

    code = "unavailable"
    template = "unavailable"
    retry_after_s: ClassVar[int] = 1


class Exhausted(MmserverError):
    """Free some space, then try again; nothing was changed."""

    code = "exhausted"
    template = "out of space"


class Corrupt(MmserverError):
    """Stored bytes are not what was stored; restore a snapshot."""

    code = "corrupt"
    template = "corrupt"


# --- not found ----------------------------------------------------------------------------------------------------------


class ModelNotFound(NotFound):
    """No model has that name."""

    code = "model_not_found"
    template = "no model is named {model_name!r}"


class NoDefaultModel(NotFound):
    """The request names no model, `default_model` is not set, and there is not exactly one."""

    code = "no_default_model"
    template = "{n_found} predictors could be meant; set default_model to MODEL.SYMBOL, or name it: /models/MODEL.SYMBOL/invocations"


class VersionNotFound(NotFound):
    """The model has no such version, or had none at that time."""

    code = "version_not_found"
    template = "{model_name} has no version {which}"  # a label in quotes, or words such as: in staging


class SymbolNotFound(NotFound):
    """The version has no such symbol."""

    code = "symbol_not_found"
    template = "{model_name} has no symbol {symbol!r}"


class SymbolAmbiguous(NotFound):
    """Several groups of one version share the symbol."""

    code = "symbol_ambiguous"
    template = "{symbol} maps to {group_keys} in {model_name}; name the group_key"


class GroupHasNoModel(NotFound):
    """The group is known, but it has no model file that can be served."""

    code = "group_has_no_model"
    template = "{group_key} has no model to serve: {reason}"


class VenueNotFound(NotFound):
    """No such venue, or nothing was ever put there."""

    code = "venue_not_found"
    template = "no quantiles are known for venue {venue!r}"


class VenueSymbolNotFound(NotFound):
    """The venue's table does not have that symbol."""

    code = "venue_symbol_not_found"
    template = "venue {venue} has no symbol {symbol!r}"


class BlobNotFound(NotFound):
    """No content with that hash is stored."""

    code = "blob_not_found"
    template = "no blob has the SHA-256 {sha256}"


class DatabaseNotFound(NotFound):
    """The data directory has no database."""

    code = "database_not_found"
    template = "no database is in {data_dir} yet; the first start makes it, or: mmserver db upgrade"


class SnapshotNotFound(NotFound):
    """No such snapshot file."""

    code = "snapshot_not_found"
    template = "no snapshot is at {path}"


class ExperimentNotFound(NotFound):
    """No experiment has that name."""

    code = "experiment_not_found"
    template = "experiment {experiment_id} is not there"


class EvaluationNotFound(NotFound):
    """The experiment has no kept decision of that number."""

    code = "evaluation_not_found"
    template = "experiment {experiment_id} has no evaluation {evaluation_id}"


class KeyNotFound(NotFound):
    """No API key has that id."""

    code = "key_not_found"
    template = "no API key has the id {key_id}"


class SymbolArchived(Gone):
    """The symbol's artifacts were taken away; versions that have it still predict when they are named."""

    code = "symbol_archived"
    template = "{model_name} no longer has {symbol!r}; its last version with it is {version}"


# --- conflict -----------------------------------------------------------------------------------------------------------


class ModelNameTaken(Conflict):
    """Another model has that name."""

    code = "model_name_taken"
    template = "a model named {model_name!r} exists; remove it first or choose another name"


class VersionTaken(Conflict):
    """The label means something else, for ever: other content, also of a version that was removed, or the same described otherwise."""

    code = "version_conflict"
    template = "{model_name} {version} {problem}"


class VersionInUse(Conflict):
    """It is in production, or in an experiment: put another one in its place first."""

    code = "version_in_use"
    template = "{model_name} {version} is {use}; {instead}"


class ExperimentTaken(Conflict):
    """Another experiment has that name, also one that has ended."""

    code = "experiment_taken"
    template = "there is an experiment {experiment_id} already; choose another name"


class ExperimentConflict(Conflict):
    """A running experiment has the same control model, and the two could meet on one unit."""

    code = "experiment_conflict"
    template = "{experiment_id} would share requests for {model_name} with {other_id}, which is running: {reason}"


class ExperimentUndecided(Conflict):
    """Nothing is recommended that could be applied; an action may be named all the same."""

    code = "experiment_undecided"
    template = "{experiment_id} is not decided: {reason}; name an action to apply one all the same"


class NotRecommended(Conflict):
    """Another action is asked for than what is recommended, and nobody confirmed that."""

    code = "not_recommended"
    template = "{action} is not what is recommended for {experiment_id}, whose verdict is {verdict}; confirm it to do it all the same"


class ExperimentStatusConflict(Conflict):
    """What is asked for cannot be done to an experiment in this status."""

    code = "experiment_status_conflict"
    template = "experiment {experiment_id} is {status}; {instead}"


class NothingBefore(Conflict):
    """There is no earlier production version to go back to."""

    code = "nothing_before"
    template = "nothing was in production of {model_name} before {version}"


class NotInProduction(Conflict):
    """Nothing is in production, so there is nothing to go back from."""

    code = "not_in_production"
    template = "no version of {model_name} is in production"


class PinnedByStage(Conflict):
    """The model serves what its stages say; promote another version instead."""

    code = "pinned_by_stage"
    template = "{model_name} serves {version} because of its stages; promote another version, or take this one out of production"


class WrongModelKind(Conflict):
    """A watched model gets its versions from its directory, a registered one gets them one by one."""

    code = "wrong_model_kind"
    template = "{model_name} is {kind}; {instead}"


class KeyEnded(Conflict):
    """The API key was revoked or has expired; nothing was changed."""

    code = "key_ended"
    template = "the key {key_id} is {status}"


class DataDirLocked(Conflict):
    """Another server holds the data directory."""

    code = "data_dir_locked"
    template = "another mmserver is using {data_dir}; stop it or choose another --data-dir"


class LeaseLost(Conflict):
    """Another process runs the scheduled jobs now."""

    code = "lease_lost"
    template = "another process holds the lease {name!r} now"


class SchemaTooNew(Conflict):
    """A newer mmserver wrote the database."""

    code = "schema_too_new"
    template = "the database has schema {found}, this mmserver knows up to {known}; install a newer mmserver"


class SchemaOutdated(Conflict):
    """The database must be upgraded first."""

    code = "schema_outdated"
    template = "the database has schema {found}, this mmserver needs {known}; run: mmserver db upgrade"


# --- invalid ------------------------------------------------------------------------------------------------------------


class SettingInvalid(Invalid):
    """A setting is unknown or has a bad value."""

    code = "setting_invalid"
    template = "{setting}: {reason}"


class HostUnknown(Invalid):
    """The request is addressed to a host that is not one of `trusted_hosts`."""

    code = "host_unknown"
    template = "the Host header names none of this server's names"


class RequestInvalid(Invalid):
    """The request's body or query does not fit; `errors` names each place."""

    code = "request_invalid"
    template = "{reason}"

    def __init__(self, reason: str, errors: list[dict[str, str]] | None = None) -> None:
        super().__init__(reason=reason, errors=errors or [])


class NameInvalid(Invalid):
    """A model name that could not be used in a URL."""

    code = "name_invalid"
    template = "model_name {model_name!r}: {reason}"


class VersionInvalid(Invalid):
    """A version's label has to be a semantic version."""

    code = "version_invalid"
    template = "version {version!r}: {reason}"


class DirectoryInvalid(Invalid):
    """The directory to watch cannot be used."""

    code = "directory_invalid"
    template = "root_path {root_path!r}: {reason}"


class OutsideRoots(Invalid):
    """The path is outside the allowed artifact roots."""

    code = "outside_roots"
    template = "{path!r} is outside the allowed roots (MMSERVER_ARTIFACT_ROOTS)"


class NothingParseable(Invalid):
    """No group in the directory could be parsed."""

    code = "nothing_parseable"
    template = "no usable artifacts in {root_path!r}: {detail}"


class AmbiguousSymbols(Invalid):
    """A symbol maps to several groups of one directory."""

    code = "symbol_ambiguous"
    template = "{detail}; a symbol may have one group only"


class ArtifactInvalid(Invalid):
    """One artifact file cannot be used. `reason` is a stable word, `detail` says more."""

    code = "artifact_invalid"
    template = "{file}: {reason}: {detail}"


class Undecodable(Invalid):
    """Bytes that are not what their format promises; raised by decoders, which do not know the file's name."""

    code = "undecodable"
    template = "{reason}: {detail}"

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason=reason, detail=detail)

    @property
    def reason(self) -> str:
        """The stable word: torn, forbidden_global, forbidden_opcode, unsupported, too_large, too_complex, …"""
        return str(self.values["reason"])

    @property
    def detail(self) -> str:
        """What exactly was found, in words."""
        return str(self.values["detail"])


class NotConvertible(Invalid):
    """The model cannot be expressed in the wanted format; refused by name."""

    code = "not_convertible"
    template = "cannot give this model as {target}: {reason}"


class QuantilesInvalid(Invalid):
    """A venue file that cannot be used; the venue keeps what it had."""

    code = "quantiles_invalid"
    template = "{file}: {reason}"


class VenueUnknown(Invalid):
    """Not one of the venues that are known."""

    code = "venue_unknown"
    template = "venue {venue!r} is unknown; known venues: {known}"


class SnapshotInvalid(Invalid):
    """The file is not a whole, consistent snapshot."""

    code = "snapshot_invalid"
    template = "{path}: {reason}"


class KeyInvalid(Invalid):
    """An API key cannot be made like that."""

    code = "key_invalid"
    template = "{field}: {reason}"


class KeyInAddress(Invalid):
    """An API key came in the address, where logs and histories keep it; take it for known to others, and rotate it."""

    code = "key_in_address"
    template = (
        "an API key never goes into an address: send it as Authorization: Bearer or X-API-Key, and rotate this one"
    )


class PluginInvalid(Invalid):
    """A plugin that cannot be used; named at start."""

    code = "plugin_invalid"
    template = "plugin {plugin}: {reason}"


class ExtraMissing(Invalid):
    """Packages of an optional extra are not installed."""

    code = "extra_missing"
    template = "{what} needs packages that are not installed; run: pip install 'mmserver[{extra}]'"


# --- what a model cannot work with --------------------------------------------------------------------------------------


class FieldsInvalid(Unprocessable):
    """A field of a prediction request is missing or of the wrong type; `errors` names each one."""

    code = "fields_invalid"
    template = "{reason}"

    def __init__(self, reason: str, errors: list[dict[str, str]]) -> None:
        super().__init__(reason=reason, errors=errors)


class FeaturesInvalid(Unprocessable):
    """The features are not the model's: a wrong count, unknown or missing names, values that are not finite."""

    code = "features_invalid"
    template = "{reason}"

    def __init__(self, reason: str, errors: list[dict[str, str]]) -> None:
        super().__init__(reason=reason, errors=errors)


class ModelAmbiguous(Unprocessable):
    """Several models have the symbol and none of them is the default."""

    code = "model_ambiguous"
    template = "{symbol} is served by {model_names}; name the model_name"


class NotExplainable(Unprocessable):
    """The model's library gives no contributions."""

    code = "not_explainable"
    template = "{model_name} cannot explain its predictions: {reason}"


class NotOptimizable(Unprocessable):
    """Only ONNX models have smaller and quicker forms."""

    code = "not_optimizable"
    template = "{model_name} {version} cannot be optimised: {reason}"


class NotInterpretable(Unprocessable):
    """The model's outputs say no direction by themselves; the protocols that give them as they are still work."""

    code = "not_interpretable"
    template = "{group_key} gives no direction: {reason}"


class TooManyRows(TooLarge):
    """The request asks for more rows than one request may."""

    code = "too_many_rows"
    template = "{n_rows} rows are more than the {limit} that one request may have; send several requests"


class UploadTooLarge(TooLarge):
    """An upload is larger than a setting allows; the detail names both."""

    code = "upload_too_large"
    template = "{what} is larger than the {limit_bytes} bytes that {setting} allows"


class VersionChanged(PreconditionFailed):
    """`If-Match` names a state that is not the current one."""

    code = "version_changed"
    template = "{what} is at {current} now; nothing was changed"


# --- forbidden, unavailable, exhausted, corrupt -------------------------------------------------------------------------


class KeyRequired(Unauthenticated):
    """The request came without an API key."""

    code = "key_required"
    template = "this needs an API key, as Authorization: Bearer, X-API-Key, or the password of Basic"


class NoKeyExists(Unauthenticated):
    """Keys are required, but none was made yet."""

    code = "no_key_exists"
    template = "API keys are required, and none exists; make one on the server: mmserver keys create --scope admin --label NAME"


class KeyMalformed(Unauthenticated):
    """What came as an API key is none, or was mistyped or cut off."""

    code = "key_malformed"
    template = "this needs a valid API key, as Authorization: Bearer, X-API-Key, or the password of Basic"


class KeyRefused(Unauthenticated):
    """The API key is unknown, revoked or expired."""

    code = "key_refused"
    template = KeyMalformed.template


class ScopeMissing(Forbidden):
    """The API key is for other things."""

    code = "scope_missing"
    template = "this needs a key with the scope {scope}"


class OutsideKeyLimits(Forbidden):
    """The API key is limited to certain models or venues, and this is another one, or not about one of them."""

    code = "outside_key_limits"
    template = "this key is limited to certain models or venues, and this is outside of them"


class ReadOnly(Forbidden):
    """The instance was started read-only."""

    code = "read_only"
    template = "this instance is read-only"


class CrossSite(Forbidden):
    """A browser sent this change from another site's page, or a form did not say where it came from."""

    code = "cross_site"
    template = "changes are taken from this server's own pages only"


class PredictorUnloadable(Unavailable):
    """The stored model cannot be loaded for prediction; the log has the reason."""

    code = "predictor_unloadable"
    template = "{group_key} cannot be loaded: {reason}"
    retry_after_s = 5


class DeadlinePassed(Unavailable):
    """The request waited longer for a thread than the deadline allows."""

    code = "deadline_passed"
    template = "the request waited {waited_s:.1f} s for a thread; it was not worked on"


class PredictionTooLong(Unavailable):
    """What the model computes for these numbers takes longer than `prediction_timeout_s`; it was stopped."""

    code = "prediction_too_long"
    template = "the model was stopped after {timeout_s:g} s with these numbers"


class QueueFull(Unavailable):
    """More requests wait for a thread than the queue holds."""

    code = "queue_full"
    template = "{n_waiting} requests wait already"


class NotReady(Unavailable):
    """Known, but not loaded yet."""

    code = "not_ready"
    template = "{what} is not ready yet"


class GroupRefused(Unavailable):
    """The symbol has artifacts, but none that could be served so far."""

    code = "group_refused"
    template = "{file} cannot be served: {reason}: {detail}; it is read again when it changes"
    retry_after_s = 5


class StillChanging(Unavailable):
    """The directory's files kept changing while they were read."""

    code = "still_changing"
    template = "{root_path!r} is still being written; nothing was changed, try again when it is quiet"
    retry_after_s = 5


class ArtifactUnstable(Unavailable):
    """An artifact file could not be read just now. `reason` is a stable word: changing, vanished, unreadable."""

    code = "artifact_unstable"
    template = "{file}: {reason}: {detail}"


class ModelChanged(Unavailable):
    """Another process published a version of the model in the meantime."""

    code = "model_changed"
    template = "{model_name} was changed by another process at the same moment; nothing was changed here, try again"


class Overloaded(Unavailable):
    """More clients want it at the same time than the server lets in: long-polls beyond `max_waiters`, registrations beyond a quarter of its threads."""

    code = "overloaded"
    template = "too many wait for {what} already; nothing was changed, try again"
    retry_after_s = 5


class DatabaseBusy(Unavailable):
    """Another process holds the write lock."""

    code = "database_busy"
    template = "the database is busy"


class WritesStopped(Unavailable):
    """Nothing is written any more, because the database was found damaged or unsafe to write; reads may go on."""

    code = "writes_stopped"
    template = "writes have stopped: {reason}; check the disk, then restart mmserver or restore a snapshot"


class SandboxUnavailable(Unavailable):
    """The guarded worker cannot be started."""

    code = "sandbox_unavailable"
    template = "the worker that reads artifacts cannot be started: {reason}"


class DiskFull(Exhausted):
    """The disk that holds the state is full or read-only."""

    code = "disk_full"
    template = "the data disk is full or read-only; nothing was changed"


class DatabaseCorrupt(Corrupt):
    """The database file is damaged."""

    code = "database_corrupt"
    template = "the database {path} is damaged: {reason}; run: mmserver snapshot restore FILE"


class ObservationsCorrupt(Corrupt):
    """The file of experiments' predictions and outcomes is damaged; predictions are served and kept beside it meanwhile."""

    code = "observations_corrupt"
    template = "the observation file {path} is damaged: {reason}; move it away, and a new one is made"


class WorkerCrashed(Unavailable):
    """The guarded worker died over these bytes; `how` names the signal or limit."""

    code = "worker_crashed"
    template = "the worker died: {how}"


class BlobCorrupt(Corrupt):
    """A stored blob is not what its hash says."""

    code = "blob_corrupt"
    template = "the stored blob {sha256} is damaged: {reason}"


class PredictionFailed(Corrupt):
    """The model's library failed on the row; the log has the reason."""

    code = "prediction_failed"
    template = "{group_key} could not be run: {reason}"


class PredictionNotFinite(Corrupt):
    """The model gave something that is not a finite number; it is never passed on as a prediction."""

    code = "prediction_not_finite"
    template = "{group_key} gave {value} for {output}"
