"""`python -m hybrid`, the same as `hybrid`."""

import sys

from hybrid.cli import main

sys.exit(main())
