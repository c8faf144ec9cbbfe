// Memory: addresses are handed out of a range that nothing backs, and pages are counted against the GPU's.
//
// cudaMalloc for the plain allocator, the driver's cuMem* for expandable segments. What is read back from the GPU is
// zeros, unless willfit_reads said what.
#define _GNU_SOURCE
#include "emulator.h"
#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define PAGE ((size_t)2 << 20)  // what the driver hands out
#define LOWEST ((uintptr_t)0x700000000000)  // above the heap, below libraries and stacks of Linux on x86-64 and arm64

struct block { void *address; size_t size; struct block *next; };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct block *on_gpu, *pinned;
static uintptr_t next_address = LOWEST;
static size_t allocated;

static size_t pages(size_t size) { return (size + PAGE - 1) / PAGE * PAGE; }

static int take(size_t size) {
  if (size > the_gpu()->limit || allocated > the_gpu()->limit - size) return OUT_OF_MEMORY;
  allocated += size;
  return SUCCESS;
}

static void *reserve(size_t size) {  // a page between two ranges, so that no two look like one
  void *address = (void *)next_address;
  next_address += pages(size) + PAGE;
  return address;
}

static void remember(struct block **list, void *address, size_t size) {
  struct block *block = malloc(sizeof *block);
  *block = (struct block){address, size, *list};
  *list = block;
}

static size_t forget(struct block **list, void *address) {
  for (; *list; list = &(*list)->next)
    if ((*list)->address == address) {
      struct block *block = *list;
      size_t size = block->size;
      *list = block->next;
      free(block);
      return size;
    }
  return 0;
}

size_t bytes_allocated(void) { return allocated; }
int is_on_gpu(const void *address) { return (uintptr_t)address >= LOWEST && (uintptr_t)address < next_address; }

static int is_pinned(const void *address) {
  int found = 0;
  pthread_mutex_lock(&lock);
  for (struct block *block = pinned; block && !found; block = block->next)
    found = (const char *)address >= (char *)block->address && (const char *)address < (char *)block->address + block->size;
  pthread_mutex_unlock(&lock);
  return found;
}

// -- the runtime -----------------------------------------------------------------------------------------------------

EXPORT int cudaMalloc(void **address, size_t size) {
  pthread_mutex_lock(&lock);
  int error = take(pages(size));
  *address = error ? NULL : reserve(size);
  if (!error) remember(&on_gpu, *address, pages(size));
  pthread_mutex_unlock(&lock);
  return error;
}
EXPORT int cudaFree(void *address) {
  pthread_mutex_lock(&lock);
  allocated -= forget(&on_gpu, address);
  pthread_mutex_unlock(&lock);
  return SUCCESS;
}
EXPORT int cudaMallocAsync(void **address, size_t size, void *stream) { return cudaMalloc(address, size); }
EXPORT int cudaFreeAsync(void *address, void *stream) { return cudaFree(address); }
EXPORT int cudaMallocManaged(void **address, size_t size, unsigned flags) { return cudaMalloc(address, size); }
EXPORT int cudaMemGetInfo(size_t *available, size_t *total) {
  size_t taken = the_gpu()->context + allocated;
  *total = the_gpu()->total;
  *available = taken < *total ? *total - taken : 0;
  return SUCCESS;
}

EXPORT int cudaHostAlloc(void **address, size_t size, unsigned flags) {
  if (!(*address = calloc(1, size ? size : 1))) return OUT_OF_MEMORY;
  pthread_mutex_lock(&lock);
  remember(&pinned, *address, size ? size : 1);
  pthread_mutex_unlock(&lock);
  return SUCCESS;
}
EXPORT int cudaMallocHost(void **address, size_t size) { return cudaHostAlloc(address, size, 0); }
EXPORT int cudaFreeHost(void *address) {
  pthread_mutex_lock(&lock);
  forget(&pinned, address);
  pthread_mutex_unlock(&lock);
  free(address);
  return SUCCESS;
}
EXPORT int cudaHostGetDevicePointer(void **device, void *host, unsigned flags) { *device = host; return SUCCESS; }

struct pointer_attributes { int type, device; void *on_device, *on_host; };  // struct cudaPointerAttributes

EXPORT int cudaPointerGetAttributes(struct pointer_attributes *attributes, const void *address) {
  enum { UNREGISTERED, HOST, DEVICE };
  memset(attributes, 0, sizeof *attributes);
  attributes->type = is_on_gpu(address) ? DEVICE : is_pinned(address) ? HOST : UNREGISTERED;
  if (attributes->type == DEVICE) attributes->on_device = (void *)address;
  if (attributes->type == HOST) attributes->on_device = attributes->on_host = (void *)address;
  return SUCCESS;
}
EXPORT int cudaGetSymbolAddress(void **address, const void *symbol) { *address = (void *)LOWEST; return SUCCESS; }

// -- copies ----------------------------------------------------------------------------------------------------------

static __thread const void *answer;  // what this thread reads from the GPU next
static __thread size_t answer_size;

// What this thread reads from the GPU from now on: these bytes, then zeros. NULL: zeros.
EXPORT void willfit_reads(const void *bytes, size_t size) { answer = bytes; answer_size = bytes ? size : 0; }

static int copy(void *to, const void *from, size_t size) {
  if (is_on_gpu(to)) return SUCCESS;
  if (!is_on_gpu(from)) {
    memcpy(to, from, size);
    return SUCCESS;
  }
  size_t known = size < answer_size ? size : answer_size;
  if (known) memcpy(to, answer, known);
  memset((char *)to + known, 0, size - known);
  return SUCCESS;
}
EXPORT int cudaMemcpy(void *to, const void *from, size_t size, int kind) { return copy(to, from, size); }
EXPORT int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) { return copy(to, from, size); }
EXPORT int cudaMemset(void *address, int value, size_t size) {
  if (!is_on_gpu(address)) memset(address, value, size);
  return SUCCESS;
}
EXPORT int cudaMemsetAsync(void *address, int value, size_t size, void *stream) { return cudaMemset(address, value, size); }

// -- the driver's virtual memory, for expandable segments: addresses are reserved freely, physical pages are counted ----

EXPORT int cuMemAddressReserve(void **address, size_t size, size_t alignment, void *hint, unsigned long long flags) {
  pthread_mutex_lock(&lock);
  *address = reserve(size);
  pthread_mutex_unlock(&lock);
  return SUCCESS;
}
EXPORT int cuMemCreate(unsigned long long *handle, size_t size, const void *properties, unsigned long long flags) {
  pthread_mutex_lock(&lock);
  int error = take(size);
  pthread_mutex_unlock(&lock);
  if (error) return error;
  size_t *physical = malloc(sizeof *physical);
  *physical = size;
  *handle = (unsigned long long)(uintptr_t)physical;
  return SUCCESS;
}
EXPORT int cuMemRelease(unsigned long long handle) {
  size_t *physical = (size_t *)(uintptr_t)handle;
  pthread_mutex_lock(&lock);
  allocated -= *physical;
  pthread_mutex_unlock(&lock);
  free(physical);
  return SUCCESS;
}
EXPORT int cuMemGetAllocationGranularity(size_t *granularity, const void *properties, int option) {
  *granularity = PAGE;
  return SUCCESS;
}

// -- the driver's functions, asked for by name -----------------------------------------------------------------------

EXPORT int cuCtxGetCurrent(void **context) { *context = (void *)16; return SUCCESS; }
EXPORT int cuDeviceGetCount(int *count) { *count = 1; return SUCCESS; }
EXPORT int cuDriverGetVersion(int *version) { return cudaDriverGetVersion(version); }
EXPORT int cuGetErrorString(int error, const char **text) { *text = cudaGetErrorString(error); return SUCCESS; }
EXPORT int cuGetErrorName(int error, const char **text) { *text = cudaGetErrorName(error); return SUCCESS; }
EXPORT int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { *flags = 0; *active = 1; return SUCCESS; }

static int does_nothing(void) { return SUCCESS; }

EXPORT int cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version, unsigned long long flags, int *found) {
  *function = dlsym(RTLD_DEFAULT, name);
  if (!*function) *function = (void *)does_nothing;
  if (found) *found = 0;  // cudaDriverEntryPointSuccess
  return SUCCESS;
}
EXPORT int cudaGetDriverEntryPoint(const char *name, void **function, unsigned long long flags, int *found) {
  return cudaGetDriverEntryPointByVersion(name, function, 0, flags, found);
}
