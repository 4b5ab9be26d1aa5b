"""`config.json`, checked, as plain data; what becomes of every key."""
