"""The exception tree. Every error that a user can cause or meet derives from `XReasonerError`.

    XReasonerError            exit code 1: the work failed (a full disk, a NaN)
    ├── CheckpointError       exit code 2: a checkpoint is missing, cut short, incomplete or another model's
    ├── EngineError           what runs the model has failed, or no server answers: the same request may do later
    ├── NonFiniteError        the model's numbers are NaN or infinite (logits, a loss, a gradient)
    │   └── NonFiniteWeightsError  a checkpoint's weights are; a CheckpointError too
    ├── OutOfMemoryError      a request does not fit the memory, even alone
    ├── RequestsError         some of many requests failed; the others were finished
    ├── TrainingError         training cannot go on (packed text that leaks, a frozen tensor that moved)
    └── UserError(ValueError) exit code 2: the user's mistake (an unknown key, a text file given as an image)
        ├── ServerError       a server refuses the request, or the key or model it was given
        ├── RequestError      a request's body has a wrong field; `param` is the first one
        ├── ContextLengthError  a prompt leaves no room for an answer in the model's context
        ├── RecipeError       a recipe's field is unknown, missing or out of bounds
        ├── DataError         a data file's line lacks a field or holds a wrong value
        └── MediaError        an image cannot be read

A new class is added only when somebody catches it. An error that reports several problems of one input has a line for
each. Messages say what was wrong, what was found, what was
expected, and the command that mends it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class XReasonerError(Exception):
    """The work failed; the message is for a person."""

    exit_code = 1


class CheckpointError(XReasonerError):
    """A checkpoint is missing, damaged, incomplete, or not of the expected kind."""

    exit_code = 2


class EngineError(XReasonerError):
    """What runs the model has failed, or no server answers; the request itself may be a good one."""


class NonFiniteError(XReasonerError):
    """The model's numbers are NaN or infinite; the message says where they were met and what to try."""


class NonFiniteWeightsError(CheckpointError, NonFiniteError):
    """A checkpoint's weights are not finite."""


class OutOfMemoryError(XReasonerError):
    """A request does not fit the memory, even computed alone; the message says what to lower."""


class RequestsError(XReasonerError):
    """Some of many requests failed, after all of them had ended.

    failures: {index of a request, or its key: its error}.
    """

    def __init__(self, failures: Mapping[Any, Exception], total: int, what: str = "request") -> None:
        first, error = next(iter(failures.items()))
        more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        super().__init__(f"{what} {first}: {reason(error)}{more}; {total - len(failures)} of {total} were finished")
        self.failures = dict(failures)
        self.exit_code = 2 if all(isinstance(error, UserError) for error in failures.values()) else 1


class TrainingError(XReasonerError):
    """Training cannot go on; what was saved stays as it is."""


class UserError(XReasonerError, ValueError):
    """The user's mistake: the message says what to change."""

    exit_code = 2


class ServerError(UserError):
    """A server refuses: `status` is its reply's, `said` its message without its address, `code` OpenAI's, if any."""

    def __init__(self, message: str, status: int, said: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.said, self.code = status, said, code


class RequestError(UserError):
    """A request's body is wrong: the message names every field, `param` the first; `code` is OpenAI's, if any."""

    def __init__(self, message: str, param: str, code: str | None = None) -> None:
        super().__init__(message)
        self.param, self.code = param, code


class ContextLengthError(UserError):
    """A prompt leaves no room for an answer in the model's context."""


class RecipeError(UserError):
    """A recipe's field is unknown, missing or out of bounds."""


class DataError(UserError):
    """A data file's line lacks a field or holds a wrong value."""


class MediaError(UserError):
    """An image cannot be read."""


def reason(error: BaseException) -> str:
    """An error in one line: its message, with its type where that is not one of ours."""
    text = " ".join(str(error).split())
    return text if text and isinstance(error, XReasonerError) else f"{type(error).__name__}: {text}".rstrip(": ")
