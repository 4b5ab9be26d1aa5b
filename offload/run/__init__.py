"""Running a plan: every Linear where it was put, whatever the device can give."""
