"""The machine and the process that opbench runs in: memory, processes, checkouts, caches, standard streams."""
