"""The machine of this process: RAM, control groups, threads, packages, saved profiles."""
