import sys

from cryosentinel.cli import main

sys.exit(main())
