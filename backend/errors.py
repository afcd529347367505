"""One error tree. Every class knows the HTTP status it is answered with."""


class BackendError(Exception):
    """Something that a user can act on; its text names the value and what was expected."""

    status = 500

    @property
    def name(self) -> str:
        """The stable identifier that goes into the JSON answer."""
        return type(self).__name__


class InvalidRequest(BackendError):
    """A request body without the expected shape."""

    status = 400


class InvalidLabelConfig(BackendError):
    """A labelling interface that cannot be parsed, or that has nothing we can label."""

    status = 400


class LabelsIndistinguishable(InvalidLabelConfig):
    """Two labels that the checkpoint's tokenizer writes with the same tokens."""


class PromptTooLong(BackendError):
    """A label set that leaves no room for text in the checkpoint's context."""

    status = 400


class Unauthorized(BackendError):
    """Missing or wrong basic-auth credentials."""

    status = 401


class ForeignPage(BackendError):
    """A request that a web page of another site made a browser send."""

    status = 403


class WrongContentType(BackendError):
    """A request body that is not declared as JSON."""

    status = 415


class TooManyGuesses(BackendError):
    """Wrong passwords or secrets in quick succession."""

    status = 429

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(f"{message}; try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class UnknownProject(BackendError):
    """A project of which nothing is stored, or a name that several projects share."""

    status = 404


class UnknownVersion(BackendError):
    """A model version that the project does not have."""

    status = 404


class NothingToForget(BackendError):
    """A task or annotation without any example."""

    status = 404


class CorruptVersion(BackendError):
    """A model version whose files are missing, or differ from those that were published."""

    status = 409


class VersionInUse(BackendError):
    """A version that cannot be deleted, because it is served."""

    status = 409


class NothingToRollBack(BackendError):
    """A project without an earlier version to return to."""

    status = 409


class NotEnoughExamples(BackendError):
    """Too few accepted annotations to train on."""

    status = 409


class Gone(BackendError):
    """A resource that no longer exists."""

    status = 410


class LabelStudioUnavailable(BackendError):
    """Label Studio's API does not answer, or refuses the key."""

    status = 502


class ModelNotReady(BackendError):
    """The model is still loading, or could not be loaded."""

    status = 503


class Overloaded(BackendError):
    """More requests than can be answered in time."""

    status = 503
    retry_after_s = 5


class StoreUnavailable(BackendError):
    """Redis or Valkey does not answer, and the request cannot be served without it."""

    status = 503


class InvalidSettings(BackendError):
    """A setting with a value that cannot work; raised at start."""


class CheckpointError(BackendError):
    """A checkpoint that is missing, incomplete or of an unknown kind; raised at start."""


class CorpusError(BackendError):
    """A corpus file that is missing or malformed."""


class AdapterError(BackendError):
    """Adapter weights that do not fit the loaded checkpoint."""


class TrainingFailed(BackendError):
    """A training that gave no result, although its examples and its checkpoint are valid."""
