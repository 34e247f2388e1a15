"""FastAPI as somebody writes it who has measured: nothing is validated, orjson both ways, and mmserver's own engine."""

import os
from pathlib import Path

import orjson
from fastapi import FastAPI, Request, Response

from benchmarks.peer_servers.exact_engine import load

app = FastAPI(openapi_url=None)
predicted = load(Path(os.environ["BENCH_MODEL"]))


@app.get("/ready")
async def ready() -> Response:
    """It is."""
    return Response()


@app.post("/predict")
async def predict(request: Request) -> Response:
    """In the event loop: it takes less than handing it to a thread."""
    asked = orjson.loads(await request.body())
    answer = {"symbol": asked["symbol"], "prediction": predicted(asked["features"])}
    return Response(orjson.dumps(answer), media_type="application/json")
