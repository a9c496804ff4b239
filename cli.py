"""`python cli.py` is the installed command `microbatch`."""

from profiler.commands import main

if __name__ == "__main__":
    main()
