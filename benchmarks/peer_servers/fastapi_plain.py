"""What one writes first with FastAPI and XGBoost: a pydantic body, a DMatrix, the library's defaults."""

import os

import numpy as np
import xgboost
from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()
booster = xgboost.Booster(model_file=os.environ["BENCH_MODEL"])


class Asked(BaseModel):
    """One row."""

    symbol: str
    features: list[float]


class Answer(BaseModel):
    """One number."""

    symbol: str
    prediction: float


@app.get("/ready")
def ready() -> dict:
    """It is."""
    return {}


@app.post("/predict")
async def predict(asked: Asked) -> Answer:
    """In the event loop: FastAPI's thread pool would cost more than the prediction does."""
    row = np.array([asked.features], np.float32)
    return Answer(symbol=asked.symbol, prediction=float(booster.predict(xgboost.DMatrix(row))[0]))
