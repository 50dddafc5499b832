"""``python -m gradfit`` is ``gradfit``."""

import sys

from gradfit.cli import main

sys.exit(main())
