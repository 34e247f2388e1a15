"""The model behind LitServe: `python litserve_server.py MODEL.json PORT`."""

import sys

import litserve
import numpy as np
import xgboost


class Predictor(litserve.LitAPI):
    """One row in, one number out."""

    def setup(self, device: str) -> None:
        """Load the model; called in the worker process."""
        self.booster = xgboost.Booster({"nthread": 1}, model_file=sys.argv[1])

    def decode_request(self, request: dict) -> np.ndarray:
        """The row."""
        return np.array([request["features"]], np.float32)

    def predict(self, row: np.ndarray) -> float:
        """XGBoost's fastest call for one row."""
        return float(self.booster.inplace_predict(row)[0])

    def encode_response(self, output: float) -> dict:
        """The answer."""
        return {"prediction": output}


if __name__ == "__main__":
    server = litserve.LitServer(Predictor(), accelerator="cpu", workers_per_device=1, timeout=60)
    server.run(
        host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", access_log=False, generate_client_file=False
    )
