"""`python -m hybrid`, the same as `hybrid`."""

import sys

from hybrid.entry import main

sys.exit(main())
