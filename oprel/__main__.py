"""`python -m oprel` is `oprel`."""

import sys

from oprel.cli import main

sys.exit(main())
