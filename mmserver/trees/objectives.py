"""Which objectives are known, and how each takes its base score to margin space."""

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import NamedTuple


class Link(Enum):
    """How a base score becomes a margin."""

    IDENTITY = "identity"
    LOGIT = "logit"
    LOG = "log"


class Objective(NamedTuple):
    """What must be known of an objective to predict margins and to hand its document to XGBoost."""

    link: Link
    parameters: str | None
    """The member of `learner.objective` that XGBoost insists on, if any."""
    required: str | None = None
    """The parameter that must be in it."""


OBJECTIVES: Mapping[str, Objective] = MappingProxyType(
    {
        "reg:squarederror": Objective(Link.IDENTITY, "reg_loss_param"),
        "reg:linear": Objective(Link.IDENTITY, "reg_loss_param"),
        "reg:squaredlogerror": Objective(Link.IDENTITY, None),
        "reg:logistic": Objective(Link.LOGIT, "reg_loss_param"),
        "reg:pseudohubererror": Objective(Link.IDENTITY, None),
        "reg:absoluteerror": Objective(Link.IDENTITY, None),
        "reg:quantileerror": Objective(Link.IDENTITY, "quantile_loss_param", "quantile_alpha"),
        "reg:gamma": Objective(Link.LOG, None),
        "reg:tweedie": Objective(Link.LOG, "tweedie_regression_param"),
        "binary:logistic": Objective(Link.LOGIT, "reg_loss_param"),
        "binary:logitraw": Objective(Link.IDENTITY, "reg_loss_param"),
        "binary:hinge": Objective(Link.IDENTITY, None),
        "count:poisson": Objective(Link.LOG, "poisson_regression_param"),
        "survival:cox": Objective(Link.LOG, None),
        "survival:aft": Objective(Link.LOG, "aft_loss_param"),
        "multi:softmax": Objective(Link.IDENTITY, "softmax_multiclass_param", "num_class"),
        "multi:softprob": Objective(Link.IDENTITY, "softmax_multiclass_param", "num_class"),
        "rank:pairwise": Objective(Link.IDENTITY, "lambdarank_param"),
        "rank:ndcg": Objective(Link.IDENTITY, "lambdarank_param"),
        "rank:map": Objective(Link.IDENTITY, "lambdarank_param"),
    }
)
"""Source: the margins that XGBoost 3.2 itself gives a model without trees; checked by the tests, one by one."""
