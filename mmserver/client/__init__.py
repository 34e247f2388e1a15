"""Programs that talk to a server: typed, with retries where they are safe, and a fallback for when it is away."""

from mmserver.client import answers as answers
from mmserver.client import registry_answers as registry_answers
from mmserver.client.answers import FailedPrediction as FailedPrediction
from mmserver.client.answers import Prediction as Prediction
from mmserver.client.async_client import ModelClient as ModelClient
from mmserver.client.downloads import ModelDownload as ModelDownload
from mmserver.client.errors import AnswerInvalid as AnswerInvalid
from mmserver.client.errors import ClientClosed as ClientClosed
from mmserver.client.errors import ClientError as ClientError
from mmserver.client.errors import Conflict as Conflict
from mmserver.client.errors import DeadlineExceeded as DeadlineExceeded
from mmserver.client.errors import Forbidden as Forbidden
from mmserver.client.errors import NotAuthenticated as NotAuthenticated
from mmserver.client.errors import NotFound as NotFound
from mmserver.client.errors import RequestRefused as RequestRefused
from mmserver.client.errors import ServerBusy as ServerBusy
from mmserver.client.errors import ServerError as ServerError
from mmserver.client.errors import ServerFailed as ServerFailed
from mmserver.client.errors import ServerUnavailable as ServerUnavailable
from mmserver.client.options import Retries as Retries
from mmserver.client.options import Timeouts as Timeouts
from mmserver.client.predicting import PredictionRequest as PredictionRequest
from mmserver.client.sync_client import SyncModelClient as SyncModelClient
from mmserver.client.validation import Decision as Decision
from mmserver.client.validation import SignalValidator as SignalValidator
