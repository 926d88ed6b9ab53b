"""``python -m escc``."""

from __future__ import annotations

from escc.cli import main

if __name__ == "__main__":
    main()
