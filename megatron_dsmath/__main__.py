"""`python -m megatron_dsmath VERB` is the same as `dsmath VERB`."""

import sys

from megatron_dsmath.cli import main

if __name__ == "__main__":
    sys.exit(main())
