"""The model as a BentoML service: `bentoml serve bentoml_service:Predictor`."""

import os

import bentoml
import numpy as np
import xgboost


@bentoml.service(workers=1, traffic={"timeout": 60}, logging={"access": {"enabled": False}})
class Predictor:
    """One row in, one number out."""

    def __init__(self) -> None:
        self.booster = xgboost.Booster({"nthread": 1}, model_file=os.environ["BENCH_MODEL"])

    @bentoml.api
    def predict(self, features: list[float]) -> float:
        """XGBoost's fastest call for one row."""
        return float(self.booster.inplace_predict(np.array([features], np.float32))[0])
