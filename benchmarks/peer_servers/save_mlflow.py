"""Saves the model as MLflow has its models: `python save_mlflow.py MODEL.json DIRECTORY`."""

import sys

import mlflow.xgboost
import xgboost

mlflow.xgboost.save_model(xgboost.Booster(model_file=sys.argv[1]), sys.argv[2], pip_requirements=["xgboost-cpu"])
