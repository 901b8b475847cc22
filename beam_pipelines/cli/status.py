def status() -> None:
    """Not there yet."""
