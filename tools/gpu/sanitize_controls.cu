// Faults that compute-sanitizer must find, or its silence about the kernels says nothing. One argument: memcheck or racecheck.
#include <cstring>

__global__ void write_outside(float *values, int count) { values[count + threadIdx.x] = 1.0f; }

__global__ void race(float *out) {
    __shared__ float values[64];
    values[threadIdx.x] = threadIdx.x;
    out[threadIdx.x] = values[63 - threadIdx.x];  // the other warp's, without a barrier
}

int main(int count, char **arguments) {
    float *values = nullptr;
    if (count != 2 || cudaMalloc(&values, 64 * sizeof(float)) != cudaSuccess) return 2;
    if (!strcmp(arguments[1], "memcheck")) write_outside<<<1, 32>>>(values, 64);
    else race<<<1, 64>>>(values);
    cudaDeviceSynchronize();
    return 0;
}
