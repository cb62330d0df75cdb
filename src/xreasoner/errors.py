"""The exception tree. Every error that a user can cause or meet derives from `XReasonerError`.

    XReasonerError            exit code 1: the work failed (a full disk, a NaN)
    ├── CheckpointError       exit code 2: a checkpoint is missing, cut short, incomplete or another model's
    ├── EngineError           what runs the model has failed, or no server answers: the same request may do later
    ├── NonFiniteError        the model's numbers are NaN or infinite (weights, logits, a loss, a gradient)
    ├── TrainingError         training cannot go on (packed text that leaks, a frozen tensor that moved)
    └── UserError(ValueError) exit code 2: the user's mistake (an unknown key, a text file given as a picture)
        ├── ServerError       a server refuses the request, or the key or model it was given
        ├── RecipeError       a recipe's field is unknown, missing or out of bounds
        ├── DataError         a data file's line lacks a field or holds a wrong value
        └── MediaError        a picture cannot be read

A new class is added only when somebody catches it. An error that reports several problems of one input has a line for
each. Messages say what was wrong, what was found, what was
expected, and the command that mends it.
"""


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


class TrainingError(XReasonerError):
    """Training cannot go on; what was saved stays as it is."""


class UserError(XReasonerError, ValueError):
    """The user's mistake: the message says what to change."""

    exit_code = 2


class ServerError(UserError):
    """A server refuses: `status` is its reply's, `said` its words without its address."""

    def __init__(self, message: str, status: int, said: str) -> None:
        super().__init__(message)
        self.status, self.said = status, said


class RecipeError(UserError):
    """A recipe's field is unknown, missing or out of bounds."""


class DataError(UserError):
    """A data file's line lacks a field or holds a wrong value."""


class MediaError(UserError):
    """A picture cannot be read."""
