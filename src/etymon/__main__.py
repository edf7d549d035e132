"""`python -m etymon`."""

from etymon.cli.main import main

if __name__ == "__main__":
    main()
