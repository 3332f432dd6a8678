from bdm.text import printable


class InputError(ValueError):
    """Bad input from the user, told in one sentence: what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class TrainingError(RuntimeError):
    """Training that went wrong, told in one sentence; the command line prints it and exits with code 1."""


class Interrupted(Exception):  # noqa: N818, no error
    """Training that was asked to end, and has written its progress; the command line exits with code 143."""
