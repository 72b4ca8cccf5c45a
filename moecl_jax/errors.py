"""The one exception a user is meant to see."""


class UserError(Exception):
    """A mistake the user can mend: says what is wrong, where, what was expected and what to do.

    The command line prints its message without a stack trace and exits with status 1.
    """
