"""Errors that a user can act on.

Every message is one sentence that says what is wrong, where, and what to do about it. The command line prints
the sentence alone and exits with status 2; any other exception is a bug and keeps its traceback.
"""


class CryoSentinelError(Exception):
    """Base of every error that is the input's fault, not the program's."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in a notebook in the place of a traceback: the sentence, as the command line does."""
        return [f"{type(self).__name__}: {self}"]


class ConfigError(CryoSentinelError):
    """A configuration or an option that cannot be used: an unknown key, a value out of range."""


class InputError(CryoSentinelError):
    """A chip, shard, scene, inventory or table that is corrupt, of the wrong type, or missing."""


class CheckpointError(CryoSentinelError):
    """A checkpoint that is unsafe to load, or does not fit the model it is loaded into."""


class HubError(CryoSentinelError):
    """A hub or a service that cannot be reached, or does not hold what was asked of it."""
