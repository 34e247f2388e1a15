"""One process's prediction service: resolve, take the features, run the model, say what it means."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

import msgspec

from mmserver.catalog.catalog import Group, Version
from mmserver.catalog.store import Store
from mmserver.errors import MmserverError
from mmserver.serving.interpretation import Decision
from mmserver.serving.predictors import Predictors

Features: TypeAlias = list[float | None] | list[list[float | None]] | dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Asked:
    """One prediction that is asked for. Without `model_name` the only model that has the symbol is meant, or the default."""

    symbol: str
    features: Features
    model_name: str | None = None
    version: str | None = None
    as_of: datetime | None = None
    explain: bool = False


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a request means: it keeps this to its end, whatever is published meanwhile."""

    version: Version
    group: Group


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer."""

    symbol: str
    decision: Decision
    model_name: str
    version: str
    model_info: msgspec.Raw
    """JSON: version, training_date, accuracy, and what the decision rests on."""
    prediction_id: str
    contributions: dict[str, Any] | None = None


class Serving:
    """What every protocol predicts through; safe for all threads."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.predictors = Predictors(store)

    def resolve(
        self, symbol: str | None, model_name: str | None, version: str | None = None, as_of: datetime | None = None
    ) -> Resolved:
        """The version and group meant; from memory, except for versions that are not served now.

        Raises:
            ModelNotFound, VersionNotFound, SymbolNotFound, SymbolAmbiguous, GroupRefused, SymbolArchived, ModelAmbiguous
        """
        raise NotImplementedError

    def predict(self, asked: Asked) -> Prediction:
        """One prediction.

        Raises:
            what `resolve` does; GroupHasNoModel, PredictorUnloadable; FeaturesInvalid; NotExplainable; PredictionNotFinite
        """
        raise NotImplementedError

    def predict_many(self, asked: Sequence[Asked]) -> list[Prediction | MmserverError]:
        """Each item's answer or its error, in the order asked; rows of one model run together."""
        raise NotImplementedError
