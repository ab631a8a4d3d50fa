"""`python -m opbench` is `opbench`."""

from opbench.cli.app import main

if __name__ == "__main__":
    main()
