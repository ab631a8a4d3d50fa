"""The fixture opbench_benchmark."""
