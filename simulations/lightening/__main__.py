"""Makes `python -m simulations.lightening` work."""

import sys

from simulations.lightening.command import main

sys.exit(main())
