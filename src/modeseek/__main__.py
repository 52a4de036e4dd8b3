"""`python -m modeseek` is `modeseek`."""

import sys

from modeseek.cli import main

sys.exit(main())
