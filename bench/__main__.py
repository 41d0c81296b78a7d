"""`python -m bench`."""

import sys

try:
    from bench.cli import main
except ModuleNotFoundError as error:
    print(f"error: {error.name} is not installed; `make setup` installs what is needed", file=sys.stderr)
    sys.exit(2)

if __name__ == "__main__":
    sys.exit(main())
