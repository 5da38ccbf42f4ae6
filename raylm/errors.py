"""Every error that is meant for a person: what happened, the value seen, and what to do.

RaylmError                     exit code 1
├── ConfigError                2   a job file or a flag says something that cannot work
├── DataError                  3   shards, manifests, raw text or a tokenizer are not what they must be
├── StorageError               4   a place cannot be reached, read or written
├── CheckpointError            5   a checkpoint is missing, incomplete, or of another run
├── TrainingError              6   training cannot go on: no progress, bad loss, no workers
├── ClusterError               7   a Ray cluster does not answer, refuses this user, or runs other versions
└── Interrupted                130 stopped by the user; the run resumes
"""


class RaylmError(Exception):
    """An error for people: printed without a traceback, with a hint and an exit code of its own."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        # Ray carries errors between processes by pickling; keep the hint on the way.
        return (_rebuild, (type(self), self.message, self.hint))

    def __str__(self) -> str:
        return self.message


def _rebuild(kind: type[RaylmError], message: str, hint: str | None) -> RaylmError:
    return kind(message, hint=hint)


class ConfigError(RaylmError):
    """A job file or a flag says something that cannot work; `key` is the setting to change, where it is one."""

    exit_code = 2

    def __init__(self, message: str, *, hint: str | None = None, key: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.key = key

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_config_error, (type(self), self.message, self.hint, self.key))


def _rebuild_config_error(kind: type[ConfigError], message: str, hint: str | None, key: str | None) -> ConfigError:
    return kind(message, hint=hint, key=key)


class DataError(RaylmError):
    """Shards, manifests, raw text or a tokenizer are not what they must be."""

    exit_code = 3


class StorageError(RaylmError):
    """A place cannot be reached, read or written."""

    exit_code = 4


class CheckpointError(RaylmError):
    """A checkpoint is missing, incomplete, or of another run."""

    exit_code = 5


class TrainingError(RaylmError):
    """Training cannot go on: no progress, a bad loss, no workers."""

    exit_code = 6


class ClusterError(RaylmError):
    """A Ray cluster does not answer, refuses this user, or runs other versions."""

    exit_code = 7


class Interrupted(RaylmError):
    """Stopped by the user; the same command resumes."""

    exit_code = 130


def first_line(error: BaseException) -> str:
    """What an error says, in one line: its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
