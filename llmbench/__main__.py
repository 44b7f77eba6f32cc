"""``python -m llmbench``."""

from llmbench.cli import main

if __name__ == "__main__":  # not in a worker process, which imports this again
    raise SystemExit(main())
