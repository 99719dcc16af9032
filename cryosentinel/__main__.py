"""``python -m cryosentinel`` is the command ``cryosentinel``."""

import sys

from cryosentinel.cli import main

sys.exit(main())
