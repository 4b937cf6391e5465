"""``python -m fusedloss``."""

import sys

from .cli import main

sys.exit(main())
