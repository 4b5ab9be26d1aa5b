"""`python -m hybrid`, the same as `hybrid`."""

import sys

from hybrid.cli.entry import main

sys.exit(main())
