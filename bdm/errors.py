class InputError(ValueError):
    """Bad input from the user, told in one sentence: what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """
