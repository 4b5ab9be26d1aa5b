"""Pictures of plans and timelines: what is on them as plain data, and one file that draws."""
