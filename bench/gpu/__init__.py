"""The GPU kit: one command that proves the project on a GPU, and says what was modelled where there is none."""
