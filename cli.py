"""``python cli.py ...`` from a checkout: the same as the installed command ``yolact-deploy ...``."""

from __future__ import annotations

import sys

from yolact_deploy.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
