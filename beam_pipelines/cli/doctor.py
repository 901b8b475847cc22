def doctor() -> None:
    """Not there yet."""
