// cuBLAS, cuFFT, CUPTI and NVML: what PyTorch reads back from them. All other functions of theirs do nothing
// (willfit/_emulator/build.py makes them).
#include "emulator.h"
#include <stdio.h>
#include <string.h>
#include <unistd.h>

// -- cuBLAS and cuBLASLt ---------------------------------------------------------------------------------------------

EXPORT int cublasCreate_v2(void **handle) { *handle = new_handle(); return SUCCESS; }
EXPORT int cublasGetPointerMode_v2(void *handle, int *mode) { *mode = 0; return SUCCESS; }
EXPORT int cublasGetMathMode(void *handle, int *mode) { *mode = 0; return SUCCESS; }
EXPORT size_t cublasLtGetVersion(void) { return 130400; }
EXPORT int cublasLtMatmulDescCreate(void **description, int compute, int scale) { *description = new_handle(); return SUCCESS; }
EXPORT int cublasLtMatrixLayoutCreate(void **layout, int type, uint64_t rows, uint64_t columns, int64_t stride) {
  *layout = new_handle();
  return SUCCESS;
}
EXPORT int cublasLtMatmulPreferenceCreate(void **preference) { *preference = new_handle(); return SUCCESS; }
EXPORT int cublasLtMatmulAlgoGetHeuristic(
    void *handle, void *operation, void *a, void *b, void *c, void *d, void *preference, int asked, void *results, int *found) {
  memset(results, 0, 96);  // one cublasLtMatmulHeuristicResult_t: success, no workspace
  *found = 1;
  return SUCCESS;
}

// -- cuFFT: plans without a work area --------------------------------------------------------------------------------

EXPORT int cufftCreate(int *plan) { *plan = 1; return SUCCESS; }
EXPORT int cufftXtMakePlanMany(
    int plan, int rank, long long *n, long long *in, long long in_stride, long long in_distance, int in_type, long long *out,
    long long out_stride, long long out_distance, int out_type, long long batch, size_t *work_size, int execution_type) {
  *work_size = 0;
  return SUCCESS;
}

// -- CUPTI: not there, so that torch.profiler follows the CPU's side alone -------------------------------------------

EXPORT int cuptiGetResultString(int result, const char **text) { *text = "there is no GPU"; return SUCCESS; }

// -- NVML ------------------------------------------------------------------------------------------------------------

struct nvml_memory { unsigned long long total, free, used; };
struct nvml_process_v1 { unsigned pid; unsigned long long used; };
struct nvml_process { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; };

static unsigned long long used_by_this_process(void) { return the_gpu()->context + bytes_allocated(); }

EXPORT int nvmlInit_v2(void) { return SUCCESS; }
EXPORT int nvmlInitWithFlags(unsigned flags) { return SUCCESS; }
EXPORT int nvmlShutdown(void) { return SUCCESS; }
EXPORT const char *nvmlErrorString(int error) { return error ? "not emulated" : "success"; }
EXPORT int nvmlDeviceGetCount_v2(unsigned *count) { *count = 1; return SUCCESS; }
EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { *device = (void *)16; return SUCCESS; }
EXPORT int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) { *device = (void *)16; return SUCCESS; }
EXPORT int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, void **device) { *device = (void *)16; return SUCCESS; }
EXPORT int nvmlDeviceGetMemoryInfo(void *device, struct nvml_memory *memory) {
  unsigned long long used = used_by_this_process(), total = the_gpu()->total;
  *memory = (struct nvml_memory){total, used < total ? total - used : 0, used};
  return SUCCESS;
}
EXPORT int nvmlDeviceGetComputeRunningProcesses(void *device, unsigned *count, struct nvml_process_v1 *processes) {
  if (*count >= 1) processes[0] = (struct nvml_process_v1){(unsigned)getpid(), used_by_this_process()};
  *count = 1;
  return SUCCESS;
}
EXPORT int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, struct nvml_process *processes) {
  if (!processes || *count < 1) {
    *count = 1;
    return 7;  // NVML_ERROR_INSUFFICIENT_SIZE: ask again with room for one
  }
  processes[0] = (struct nvml_process){(unsigned)getpid(), used_by_this_process(), ~0u, ~0u};
  *count = 1;
  return SUCCESS;
}
EXPORT int nvmlDeviceGetGraphicsRunningProcesses_v3(void *device, unsigned *count, struct nvml_process *processes) {
  *count = 0;
  return SUCCESS;
}
EXPORT int nvmlSystemGetCudaDriverVersion_v2(int *version) { return cudaDriverGetVersion(version); }
EXPORT int nvmlSystemGetDriverVersion(char *text, unsigned size) { snprintf(text, size, "emulated"); return SUCCESS; }
EXPORT int nvmlDeviceGetNvLinkRemoteDeviceType(void *device, unsigned link, int *type) { return 3; }  // not supported
EXPORT int nvmlDeviceGetNvLinkRemotePciInfo_v2(void *device, unsigned link, void *info) { return 3; }
EXPORT int nvmlDeviceGetGpuFabricInfo(void *device, void *info) { return SUCCESS; }  // in no fabric
EXPORT int nvmlDeviceGetGpuFabricInfoV(void *device, void *info) { return SUCCESS; }
