"""The inert pickle decoder: pickles and joblib files become data; no global is resolved and nothing in them is called."""

from mmserver.inert.decoding import decode
from mmserver.inert.jsonable import to_jsonable
from mmserver.inert.limits import Limits

__all__ = ["Limits", "decode", "to_jsonable"]
