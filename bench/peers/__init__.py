"""Other runtimes, built and run the same way on the same machine, to compare with."""
