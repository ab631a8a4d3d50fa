"""What one cell spends its time on: kernels under torch.profiler, counters of NVIDIA's tools."""
