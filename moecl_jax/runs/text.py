"""Numbers as people read them."""


def wall_time(seconds: float) -> str:
    """A duration as hours, minutes and seconds: 123.4 is `0:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
