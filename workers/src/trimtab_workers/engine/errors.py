"""What can go wrong in the engine: one class per thing that a caller can do about it.

Request errors carry what an OpenAI error object needs (`code`, `status`, `param`); checkpoint
errors carry the `reason` that an InferenceIntent's condition shows (contracts §3).
"""

from __future__ import annotations


class EngineError(Exception):
    """A request or an engine operation failed; the message is a sentence for the user.

    Attributes:
        message: Full sentence naming object, field, value and remedy.
        code: OpenAI error code in snake case.
        status: HTTP status that the server answers with.
        param: The request field at fault, if one is.
        retry_after_seconds: Set when the same request may succeed later.
    """

    code = "internal_error"
    status = 500

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        status: int | None = None,
        param: str | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code if code is not None else type(self).code
        self.status = status if status is not None else type(self).status
        self.param = param
        self.retry_after_seconds = retry_after_seconds


class UnexpectedError(EngineError):
    """Something failed that nobody foresaw; a bug, whose cause is in the worker's log."""

    code = "unexpected_error"


class InvalidRequestError(EngineError):
    """A field of the request has a value that cannot be served; change the request."""

    code = "invalid_value"
    status = 400


class ContextLengthError(InvalidRequestError):
    """Prompt and output do not fit the context; shorten them."""

    code = "context_length_exceeded"


class UnknownModelError(EngineError):
    """The worker does not serve a model of this name; ask for one that it lists."""

    code = "model_not_found"
    status = 404


class ModelUnavailableError(EngineError):
    """The model is known but loading, draining or failed; retry later or read `/-/state`."""

    code = "model_unavailable"
    status = 503


class QueueFullError(EngineError):
    """Too many requests wait for this model; retry after a moment."""

    code = "queue_full"
    status = 503


class DrainingError(EngineError):
    """The engine is shutting down and takes no more requests; retry elsewhere."""

    code = "shutting_down"
    status = 503


class BatchFailedError(EngineError):
    """A forward step failed (Python error or NaN logits); only this batch is lost."""

    code = "engine_step_failed"
    status = 500


class ConfigError(EngineError):
    """The model set or another engine setting is wrong; it changes nothing until repaired."""

    code = "invalid_config"


class OutOfMemoryError(ConfigError):
    """What is declared does not fit into the declared memory; both numbers are in the message."""

    code = "out_of_memory"


class HostCopyError(EngineError):
    """A host copy of weights cannot be made or is damaged; the model is not lent, or fails."""

    code = "host_copy"


class CheckpointError(EngineError):
    """A model's files cannot be served.

    Attributes:
        reason: The condition reason of contracts §3.
    """

    code = "model_unusable"
    reason = "ModelCorrupt"


class ModelNotFoundError(CheckpointError):
    """The path holds no checkpoint; correct `spec.model.source`."""

    reason = "ModelNotFound"


class ModelCorruptError(CheckpointError):
    """The checkpoint is cut, damaged or inconsistent; fetch it again."""

    reason = "ModelCorrupt"


class UnsupportedModelError(CheckpointError):
    """The checkpoint is sound, but this engine cannot run it; choose another model."""

    reason = "UnsupportedModel"


class SlabMismatchError(CheckpointError):
    """The model's layers or blocks do not suit the slabs of a running engine; roll the worker."""

    reason = "SlabMismatch"
