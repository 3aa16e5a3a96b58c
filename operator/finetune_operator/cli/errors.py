"""How a command fails."""


class CommandError(Exception):
    """Told to the person as it is, on stderr."""

    status = 1


class UsageError(CommandError):
    """The command line is wrong, not what it names."""

    status = 2
