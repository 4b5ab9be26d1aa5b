"""Tells what a path or a name on the hub is, and gets its files here."""
