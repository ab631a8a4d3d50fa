"""What `opbench check` tells the author of an operator."""
