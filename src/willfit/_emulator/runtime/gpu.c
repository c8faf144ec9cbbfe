// The GPU: what it is, what it can do.
#include "emulator.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CUDA_VERSION_REPORTED 13020  // newer than any PyTorch asks for

static size_t number(const char *variable, size_t otherwise) {
  const char *text = getenv(variable);
  return text && *text ? strtoull(text, NULL, 10) : otherwise;
}

const struct gpu *the_gpu(void) {
  static struct gpu gpu;
  if (!gpu.name) {
    size_t capability = number("WILLFIT_GPU_CAPABILITY", 80);
    gpu.total = number("WILLFIT_GPU_TOTAL", (size_t)80 << 30);
    gpu.context = number("WILLFIT_GPU_CONTEXT", 0);
    gpu.limit = number("WILLFIT_GPU_LIMIT", SIZE_MAX);
    gpu.major = (int)(capability / 10);
    gpu.minor = (int)(capability % 10);
    gpu.multiprocessors = (int)number("WILLFIT_GPU_MULTIPROCESSORS", 108);
    gpu.name = getenv("WILLFIT_GPU_NAME") ? getenv("WILLFIT_GPU_NAME") : "emulated GPU";
  }
  return &gpu;
}

// -- limits by compute capability ------------------------------------------------------------------------------------
// "Technical Specifications per Compute Capability" in the CUDA C++ Programming Guide; L2 from the architecture white
// papers. They steer which kernels PyTorch chooses, and how large some of their temporaries are.

struct limits { int capability, shared_per_block, shared_per_multiprocessor, threads, blocks, l2; };

static const struct limits *limits(void) {
  static const struct limits table[] = {
      {120, 101376, 102400, 1536, 24, 100663296},
      {100, 232448, 233472, 2048, 32, 132120576},
      {90, 232448, 233472, 2048, 32, 52428800},
      {89, 101376, 102400, 1536, 24, 75497472},
      {86, 101376, 102400, 1536, 16, 6291456},
      {80, 166912, 167936, 2048, 32, 41943040},
      {75, 65536, 65536, 1024, 16, 4194304},
      {0, 98304, 98304, 2048, 32, 6291456},
  };
  const struct limits *row = table;
  while (the_gpu()->major * 10 + the_gpu()->minor < row->capability) row++;
  return row;
}

// -- cudaDeviceProp --------------------------------------------------------------------------------------------------

struct properties_12 {
#define CUDA_12(field) field
#define CUDA_13(field)
#include "properties.inc"
#undef CUDA_12
#undef CUDA_13
};

struct properties_13 {
#define CUDA_12(field)
#define CUDA_13(field) field
#include "properties.inc"
#undef CUDA_12
#undef CUDA_13
};

#define FILL(properties)                                                                                              \
  do {                                                                                                                \
    const struct gpu *gpu = the_gpu();                                                                                \
    memset(properties, 0, sizeof *properties);                                                                        \
    snprintf(properties->name, sizeof properties->name, "%s", gpu->name);                                             \
    properties->totalGlobalMem = gpu->total;                                                                          \
    properties->major = gpu->major;                                                                                   \
    properties->minor = gpu->minor;                                                                                   \
    properties->multiProcessorCount = gpu->multiprocessors;                                                           \
    properties->maxThreadsPerBlock = properties->maxThreadsDim[0] = properties->maxThreadsDim[1] = 1024;              \
    properties->maxThreadsDim[2] = 64;                                                                                \
    properties->maxGridSize[0] = 2147483647;                                                                          \
    properties->maxGridSize[1] = properties->maxGridSize[2] = 65535;                                                  \
    properties->warpSize = 32;                                                                                        \
    properties->regsPerBlock = properties->regsPerMultiprocessor = 65536;                                             \
    properties->sharedMemPerBlock = 49152;                                                                            \
    properties->sharedMemPerBlockOptin = limits()->shared_per_block;                                                  \
    properties->sharedMemPerMultiprocessor = limits()->shared_per_multiprocessor;                                     \
    properties->maxThreadsPerMultiProcessor = limits()->threads;                                                      \
    properties->maxBlocksPerMultiProcessor = limits()->blocks;                                                        \
    properties->l2CacheSize = limits()->l2;                                                                           \
    properties->memoryBusWidth = 256;                                                                                 \
    properties->totalConstMem = 65536;                                                                                \
    properties->textureAlignment = 512;                                                                               \
    properties->unifiedAddressing = properties->concurrentKernels = 1;                                                \
    properties->asyncEngineCount = 2;                                                                                 \
  } while (0)

// In CUDA 12 the function has _v2 in its name, in CUDA 13 it has not, so one library serves both.
EXPORT int cudaGetDeviceProperties_v2(struct properties_12 *properties, int device) { FILL(properties); return SUCCESS; }
EXPORT int cudaGetDeviceProperties(struct properties_13 *properties, int device) { FILL(properties); return SUCCESS; }

EXPORT int cudaDeviceGetAttribute(int *value, int attribute, int device) {
  switch (attribute) {  // the numbers of enum cudaDeviceAttr
    case 1: case 2: case 3: *value = 1024; break;                      // threads in a block; its x and y
    case 4: *value = 64; break;                                        // its z
    case 5: *value = 2147483647; break;                                // blocks in a grid: x
    case 6: case 7: *value = 65535; break;                             // y, z
    case 8: *value = 49152; break;                                     // shared memory in a block
    case 9: *value = 65536; break;                                     // constant memory
    case 10: *value = 32; break;                                       // threads in a warp
    case 12: case 82: *value = 65536; break;                           // registers in a block, in a multiprocessor
    case 16: *value = the_gpu()->multiprocessors; break;
    case 38: *value = limits()->l2; break;
    case 39: *value = limits()->threads; break;
    case 41: *value = 1; break;                                        // unified addressing
    case 75: *value = the_gpu()->major; break;
    case 76: *value = the_gpu()->minor; break;
    case 81: *value = limits()->shared_per_multiprocessor; break;
    case 97: *value = limits()->shared_per_block; break;               // opt-in
    case 106: *value = limits()->blocks; break;
    default: *value = 0;
  }
  return SUCCESS;
}

// -- the one device --------------------------------------------------------------------------------------------------

EXPORT int cudaGetDeviceCount(int *count) { *count = 1; return SUCCESS; }
EXPORT int cudaGetDevice(int *device) { *device = 0; return SUCCESS; }
EXPORT int cudaDriverGetVersion(int *version) { *version = CUDA_VERSION_REPORTED; return SUCCESS; }
EXPORT int cudaRuntimeGetVersion(int *version) { *version = CUDA_VERSION_REPORTED; return SUCCESS; }
EXPORT int cudaDeviceCanAccessPeer(int *can, int device, int peer) { *can = 0; return SUCCESS; }
EXPORT int cudaDeviceGetPCIBusId(char *text, int size, int device) { snprintf(text, size, "0000:00:00.0"); return SUCCESS; }
EXPORT int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
  if (least) *least = 0;
  if (greatest) *greatest = -5;
  return SUCCESS;
}
EXPORT const char *cudaGetErrorString(int error) {
  return error == SUCCESS ? "no error" : error == OUT_OF_MEMORY ? "out of memory" : "not emulated";
}
EXPORT const char *cudaGetErrorName(int error) {
  return error == SUCCESS ? "cudaSuccess" : error == OUT_OF_MEMORY ? "cudaErrorMemoryAllocation" : "cudaErrorNotSupported";
}

// -- kernels ---------------------------------------------------------------------------------------------------------

struct function_attributes {  // struct cudaFuncAttributes
  size_t shared, constant, local;
  int max_threads, registers, ptx_version, binary_version, rest[24];
};

EXPORT int cudaFuncGetAttributes(struct function_attributes *attributes, const void *function) {
  int capability = the_gpu()->major * 10 + the_gpu()->minor;
  memset(attributes, 0, sizeof *attributes);
  attributes->max_threads = 1024;
  attributes->registers = 32;
  // PyTorch has no code for 8.9 and runs that for 8.6 there; CUB looks up its tuning by this.
  attributes->ptx_version = attributes->binary_version = capability == 89 ? 86 : capability;
  return SUCCESS;
}

// How many blocks of a kernel a multiprocessor runs at once depends on its registers, which are not known: as many as
// its threads allow. CUB sizes temporaries by it.
EXPORT int cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *function, int size, size_t shared) {
  int by_threads = size > 0 ? limits()->threads / size : 1;
  *blocks = by_threads < 1 ? 1 : by_threads < limits()->blocks ? by_threads : limits()->blocks;
  return SUCCESS;
}
EXPORT int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    int *blocks, const void *function, int size, size_t shared, unsigned flags) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, size, shared);
}

EXPORT void **__cudaRegisterFatBinary(void *binary) { static void *handle[2]; return handle; }
EXPORT void __cudaRegisterFatBinaryEnd(void **handle) {}
EXPORT void __cudaUnregisterFatBinary(void **handle) {}

// -- streams and events: all is over at once -------------------------------------------------------------------------

void *new_handle(void) { return calloc(1, 4096); }

EXPORT int cudaEventCreate(void **event) { *event = new_handle(); return SUCCESS; }
EXPORT int cudaEventCreateWithFlags(void **event, unsigned flags) { return cudaEventCreate(event); }
EXPORT int cudaEventDestroy(void *event) { free(event); return SUCCESS; }
EXPORT int cudaEventElapsedTime(float *milliseconds, void *start, void *end) { *milliseconds = 1; return SUCCESS; }
EXPORT int cudaStreamCreate(void **stream) { *stream = new_handle(); return SUCCESS; }
EXPORT int cudaStreamCreateWithFlags(void **stream, unsigned flags) { return cudaStreamCreate(stream); }
EXPORT int cudaStreamCreateWithPriority(void **stream, unsigned flags, int priority) { return cudaStreamCreate(stream); }
EXPORT int cudaStreamGetPriority(void *stream, int *priority) { *priority = 0; return SUCCESS; }
EXPORT int cudaStreamIsCapturing(void *stream, int *status) { *status = 0; return SUCCESS; }
EXPORT int cudaStreamGetCaptureInfo(void *stream, int *status, unsigned long long *id) {  // more arguments: not written to
  *status = 0;
  if (id) *id = 0;
  return SUCCESS;
}
EXPORT int cudaStreamGetCaptureInfo_v2(void *stream, int *status, unsigned long long *id) {
  return cudaStreamGetCaptureInfo(stream, status, id);
}
