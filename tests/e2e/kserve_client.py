"""Asks a server with KServe's own client: run by the Python that has it, JSON on its input and output."""

import asyncio
import json
import sys

import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput


async def ask(url, model, rows):
    client = InferenceRESTClient(RESTConfig(protocol="v2", timeout=60))
    health = {
        "live": await client.is_server_live(url),
        "ready": await client.is_server_ready(url),
        "model_ready": await client.is_model_ready(url, model),
        "unknown_ready": await client.is_model_ready(url, "nosuch"),
    }
    wishes = {
        "default": None,
        "json": [RequestedOutput("prediction")],
        "binary": [RequestedOutput("prediction", parameters={"binary_data": True})],
    }
    predictions = {}
    for is_binary in (False, True):
        for name, outputs in wishes.items():
            tensor = InferInput("features", list(rows.shape), "FP32")
            tensor.set_data_from_numpy(rows, binary_data=is_binary)
            request = InferRequest(model_name=model, infer_inputs=[tensor], request_outputs=outputs)
            answer = await client.infer(url, request, model_name=model)
            assert answer.id
            [found] = [output.as_numpy() for output in answer.outputs if output.name == "prediction"]
            predictions[f"{'binary' if is_binary else 'json'} in, {name} out"] = found.tolist()
    try:
        await client.infer(url, {"inputs": []}, model_name="nosuch")
    except Exception as error:
        unknown_model = str(error)
    await client.close()
    return {"health": health, "predictions": predictions, "unknown_model": unknown_model}


asked = json.load(sys.stdin)
rows = np.array(asked["rows"], dtype=np.float32)
json.dump(asyncio.run(ask(asked["url"], asked["model"], rows)), sys.stdout)
