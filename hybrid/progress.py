"""Who is told how far loading is."""


class Progress:
    """Takes note of nothing; what shows or records it overrides this."""

    def on_stage(self, label: str, total_bytes: int) -> None:
        """Begin a stage of so many bytes; 0: not known beforehand."""

    def on_bytes(self, nbytes: int) -> None:
        """So many more bytes of the stage are done; from any thread."""
