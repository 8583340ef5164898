"""All exceptions that ssray raises on purpose; they share the base class ``SsrayError``.

Each message says what was found, what was expected and what to do about it.
The command line prints the message alone and exits with the error's ``exit_code``.
"""


class SsrayError(Exception):
    """The base class of every error that ssray raises on purpose.

    Attributes:
        exit_code: what the command line ends with; 2 is a mistake in what was asked for.
    """

    exit_code = 2


class ConfigError(SsrayError):
    """A setting is unknown, has the wrong type or lies outside its range."""


class DataError(SsrayError):
    """A data set, image or mask is missing or not laid out as expected."""


class ImageError(DataError):
    """One image cannot be read, decoded or scored.

    Attributes:
        code: a short, stable reason such as ``"truncated"``, which tables store.
        transient: whether the storage is the reason, and the same image may be read later.
    """

    def __init__(self, code: str, message: str, transient: bool = False) -> None:
        super().__init__(message)
        self.code, self.transient = code, transient

    def __reduce__(self) -> tuple[type["ImageError"], tuple[str, str, bool]]:
        return type(self), (self.code, str(self), self.transient)


def too_large(uri: str, size: int, most: int) -> ImageError:
    """The error for a file of ``size`` bytes where ``most`` are read."""
    return ImageError("too_large", f"{uri}: {size:,} bytes; at most {most:,} are read")


def changed(uri: str) -> ImageError:
    """The error for a file that is no longer what it was when it was listed or opened."""
    return ImageError(
        "changed",
        f"{uri}: was replaced after it was listed; it is read once it is listed anew",
        transient=True,
    )


class ConflictError(SsrayError):
    """Another process changed a file after this one read it, or holds the same lease."""


class ArtifactError(SsrayError):
    """A stored model is missing, incomplete or does not match its checksums."""


class TrainingError(SsrayError):
    """A training run could not start, or did not produce a model that can be put into use."""


class PoorModelError(TrainingError):
    """A trained model tells defects from good parts hardly better than guessing."""

    exit_code = 1


class ClusterError(SsrayError):
    """Ray did not start, or was lost."""

    exit_code = 1


class ScoringError(SsrayError):
    """A scoring run could not be finished."""
