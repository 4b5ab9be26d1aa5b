"""The `hybrid` command: flags, settings files, and what each sub-command does."""
