"""Progress of loading, as whoever shows or records it is told."""


class Progress:
    """Ignores what it is told; subclasses show or record it."""

    def on_stage(self, label: str, total_bytes: int) -> None:
        """Begin a stage of so many bytes; 0: not known beforehand."""

    def on_bytes(self, nbytes: int) -> None:
        """So many more bytes of the stage are done; from any thread."""
