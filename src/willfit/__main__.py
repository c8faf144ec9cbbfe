"""``python -m willfit``, the same as ``willfit``."""

import sys

from willfit.cli import main

sys.exit(main())
