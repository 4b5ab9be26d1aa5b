"""A device of NumPy arrays and a virtual clock."""
