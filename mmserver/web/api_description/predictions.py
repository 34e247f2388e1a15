"""The operations of prediction, and of the models that predict, as clients of the earlier services know them."""

from mmserver import errors
from mmserver.web.api_description import prediction_bodies as bodies
from mmserver.web.api_description.operations import AS_OF, OF_A_PREDICTOR, OF_STORED_DATA, Answer, Body, Operation
from mmserver.web.prediction_bodies import BatchBody, PredictBody

PREDICTION = "Prediction"

REFUSED_ITEM = (
    errors.ModelNotFound, errors.VersionNotFound, errors.SymbolNotFound, errors.SymbolAmbiguous, errors.SymbolArchived,
    errors.GroupRefused, errors.ModelAmbiguous, errors.FieldsInvalid, errors.FeaturesInvalid,
    errors.NotExplainable, errors.NotInterpretable, errors.PredictionNotFinite,
    errors.PredictionFailed, *OF_A_PREDICTOR,
)  # fmt: skip
_OF_A_PREDICTION = (*REFUSED_ITEM, errors.TooManyRows, errors.CrossSite, *OF_STORED_DATA)
_OF_A_BATCH = (errors.FieldsInvalid, errors.TooManyRows, errors.CrossSite, *OF_STORED_DATA)

_PREDICT = """\
`features` is a vector in factor order or an object by factor name; for a model with timesteps a matrix of timesteps × factors, or its
numbers in one vector. null is missing, where the model knows missing values. Without `model_name` the only model that has the symbol is meant, or the default model. `explain` adds each
feature's contribution. `null` for `confidence`, `probability` or `expected_return` means that the model gives no ground for it.
"""
_BATCH = "One bad item is an error in its place and does not spoil the others. `max_batch_size`: so many run together."

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "POST", "/predict", "predict", PREDICTION, "Predict for one symbol",
        description=_PREDICT,
        parameters=(AS_OF,),
        body=Body.json(PredictBody),
        answers=(Answer.json(bodies.Prediction, "The prediction."),),
        errors=_OF_A_PREDICTION,
    ),
    Operation(
        "POST", "/predict/batch", "predict_batch", PREDICTION, "Predict for many symbols",
        description=_BATCH,
        parameters=(AS_OF,),
        body=Body.json(BatchBody),
        answers=(Answer.json(bodies.BatchOfPredictions, "Each item's prediction or error."),),
        errors=_OF_A_BATCH,
    ),
    Operation(
        "POST", "/api/ml/predict", "predict_coded", PREDICTION, "Predict for one symbol, direction as a code",
        description=f"0 HOLD, 1 BUY, 2 SELL. {_PREDICT}",
        parameters=(AS_OF,),
        body=Body.json(PredictBody),
        answers=(Answer.json(bodies.CodedPrediction, "The prediction."),),
        errors=_OF_A_PREDICTION,
    ),
    Operation(
        "POST", "/api/ml/predict/batch", "predict_batch_coded", PREDICTION,
        "Predict for many symbols, directions as codes",
        description=f"0 HOLD, 1 BUY, 2 SELL. {_BATCH}",
        parameters=(AS_OF,),
        body=Body.json(BatchBody),
        answers=(Answer.json(bodies.BatchOfCodedPredictions, "Each item's prediction or error."),),
        errors=_OF_A_BATCH,
    ),
)  # fmt: skip
