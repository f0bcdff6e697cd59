"""``python -m canobatch``: the launcher."""

from canobatch.cli import main

if __name__ == "__main__":
    main()
