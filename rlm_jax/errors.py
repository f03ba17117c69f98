"""The one exception for bad input: its message is what the user reads."""


class UserError(Exception):
    """Bad input from outside: a path, a file, a flag, a checkpoint, a number.

    The message is one sentence that names the offending thing and the remedy. Launchers
    print it without a traceback and exit with status 1; everything else is a bug and
    keeps its traceback.
    """
