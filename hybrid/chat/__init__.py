"""Chat: a conversation on one kept cache, and the terminal around it."""
