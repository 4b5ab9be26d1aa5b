"""Stored weights on their way: out of files into RAM, and through rings to where they are multiplied."""
