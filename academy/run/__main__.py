"""`python -m academy.run`."""

import sys

from academy.run import main

sys.exit(main())
