"""What a path or a name on the hub is, and how its files get here."""
