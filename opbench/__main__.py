"""`python -m opbench` is `opbench`."""

from opbench.cli import main

if __name__ == "__main__":
    main()
