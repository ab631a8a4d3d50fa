"""Finds operators: opbench's own, plug-ins, and those that a file or a module names."""
