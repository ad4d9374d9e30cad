"""The one error type that means: the input is wrong, and here is how to mend it."""


class InputError(ValueError):
    """A mistake in a config, a file or an argument; one line that names the place and the way out."""
