"""`hybrid tune --calibrate`: measure this machine, so that plans need no estimates."""
