// A stand-in for a GPU's driver and libraries, loaded before them under a CUDA build of PyTorch.
//
// Memory is bookkept and not backed, kernels and library calls succeed and do nothing. So what PyTorch asks of the GPU's
// memory is PyTorch's own doing, and what its tensors hold means nothing. No header of CUDA's is needed: what is declared
// here is the part of its binary interface that PyTorch uses, alike in CUDA 12 and 13 unless a name says otherwise.
#pragma once
#include <stddef.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

enum { SUCCESS = 0, OUT_OF_MEMORY = 2, NOT_FOUND = 500, NOT_SUPPORTED = 801 };  // cudaError_t and CUresult agree on these

// The GPU, as the environment describes it (willfit/_emulator/launch.py sets it).
struct gpu {
  const char *name;
  size_t total;           // bytes, as the driver reports them
  size_t context;         // bytes that the process takes besides what it allocates
  size_t limit;           // bytes that may be allocated; SIZE_MAX: without limit
  int major, minor;       // compute capability
  int multiprocessors;
};
const struct gpu *the_gpu(void);

size_t bytes_allocated(void);   // by cudaMalloc and cuMemCreate, in whole pages
int is_on_gpu(const void *address);
void *new_handle(void);         // what an opaque handle points to: zeros, never freed

int cudaDriverGetVersion(int *version);
const char *cudaGetErrorString(int error);
const char *cudaGetErrorName(int error);
