"""Makes `python -m simulations.sealed_cost` work."""

import sys

from simulations.sealed_cost.command import main

sys.exit(main())
