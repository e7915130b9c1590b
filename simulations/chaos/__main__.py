"""Makes `python -m simulations.chaos` work."""

import os
import sys

from simulations.chaos.command import main

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.exit(main())
