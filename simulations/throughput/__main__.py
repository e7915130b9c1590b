"""Makes `python -m simulations.throughput` work."""

import sys

from simulations.throughput.command import main

sys.exit(main())
