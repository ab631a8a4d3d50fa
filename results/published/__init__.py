"""Published figures to compare runs with; README.md beside this file names their source and set-up."""
