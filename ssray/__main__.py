"""``python -m ssray``: the command line."""

from ssray.cli.main import main

if __name__ == "__main__":
    main()
