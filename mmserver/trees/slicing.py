"""Cut a document down to its first boosting iterations: what an early-stopped model really predicts with."""

from typing import Any

from mmserver.trees.document import Document, booster_of
from mmserver.trees.model import TreeModel

_EARLY_STOPPING = frozenset({"best_iteration", "best_score", "best_ntree_limit"})


def slice_iterations(document: Document, model: TreeModel, end: int) -> Document:
    """A document with the first `end` iterations; the given one is left as it is, and shares its trees with it.

    The early-stopping attributes are left out, as XGBoost's own `booster[:end]` does: with only the best trees left, a
    reader that honours them and one that does not predict the same.

    Raises:
        ValueError: `end` is not between 1 and the number of iterations.
    """
    if not 1 <= end <= model.n_iterations:
        raise ValueError(f"end is {end}, the model has {model.n_iterations} iterations")
    n_trees = int(model.iteration_offsets[end])
    name, trees, _ = booster_of(document)
    kept: dict[str, Any] = {
        **trees,
        "gbtree_model_param": {**trees["gbtree_model_param"], "num_trees": str(n_trees)},
        "tree_info": trees["tree_info"][:n_trees],
        "trees": trees["trees"][:n_trees],
    }
    if "iteration_indptr" in trees:
        kept["iteration_indptr"] = trees["iteration_indptr"][: end + 1]
    learner = document["learner"]
    booster = learner["gradient_booster"]
    if name == "dart":
        sliced = {
            **booster,
            "gbtree": {**booster["gbtree"], "model": kept},
            "weight_drop": booster["weight_drop"][:n_trees],
        }
    else:
        sliced = {**booster, "model": kept}
    attributes = {key: value for key, value in learner.get("attributes", {}).items() if key not in _EARLY_STOPPING}
    return {**document, "learner": {**learner, "attributes": attributes, "gradient_booster": sliced}}
