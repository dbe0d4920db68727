/* A libnvidia-ml.so.1 that answers as a certain GPU does, for the real nvidia-ml-py. What it says is set with -D.
 *
 * The defaults are a GB10's published answers: memory is not supported; temperature, power, clocks, utilization and
 * per-process memory work. Numbers of results are those of nvml.h.
 */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#ifndef GPU_NAME
#define GPU_NAME "NVIDIA GB10"
#endif
#ifndef MAJOR
#define MAJOR 12
#define MINOR 1
#endif
#ifndef DRIVER
#define DRIVER "580.173.02"
#endif
#ifndef CUDA
#define CUDA 13000
#endif
#ifndef INIT
#define INIT 0
#endif
#ifndef HANG
#define HANG 0
#endif
#ifndef COUNT
#define COUNT 1
#endif
#ifndef MEMORY
#define MEMORY 0ULL
#endif
#ifndef UTILIZATION
#define UTILIZATION 0
#endif
#ifndef SM_CLOCK
#define SM_CLOCK 208
#endif
#ifndef POWER_MW
#define POWER_MW 4500
#endif
#ifndef THROTTLE
#define THROTTLE 1ULL
#endif
#ifndef ECC
#define ECC -1
#endif
#ifndef PROCESS_BYTES
#define PROCESS_BYTES 0ULL
#endif

enum { SUCCESS = 0, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7 };

typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned int gpu, memory; } utilization_t;
typedef struct { unsigned int pid; unsigned long long used; unsigned int instance, compute; } process_t;

int nvmlInitWithFlags(unsigned int flags) {
  (void)flags;
  if (HANG) sleep(600);
  return INIT;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(int result) {
  switch (result) {
    case 9: return "Driver Not Loaded";
    case 18: return "Driver/library version mismatch";
    case 999: return "Unknown Error";
    case 3: return "Not Supported";
    default: return "Error";
  }
}

int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = CUDA; return SUCCESS; }
int nvmlSystemGetDriverVersion(char *text, unsigned int size) { snprintf(text, size, "%s", DRIVER); return SUCCESS; }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = COUNT; return SUCCESS; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) { *device = (void *)(1UL + index); return SUCCESS; }
int nvmlDeviceGetName(void *device, char *text, unsigned int size) { (void)device; snprintf(text, size, "%s", GPU_NAME); return SUCCESS; }

int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
  (void)device;
  *major = MAJOR;
  *minor = MINOR;
  return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(void *device, memory_t *memory) {
  (void)device;
  if (MEMORY == 0) return NOT_SUPPORTED;
  memory->total = MEMORY;
  memory->free = MEMORY;
  memory->used = 0;
  return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(void *device, utilization_t *rates) {
  (void)device;
  rates->gpu = UTILIZATION;
  rates->memory = 0;
  return SUCCESS;
}

int nvmlDeviceGetPowerUsage(void *device, unsigned int *milliwatts) { (void)device; *milliwatts = POWER_MW; return SUCCESS; }
int nvmlDeviceGetClockInfo(void *device, int kind, unsigned int *mhz) { (void)device; (void)kind; *mhz = SM_CLOCK; return SUCCESS; }
int nvmlDeviceGetMaxClockInfo(void *device, int kind, unsigned int *mhz) { (void)device; (void)kind; *mhz = 3003; return SUCCESS; }
int nvmlDeviceGetTemperature(void *device, int sensor, unsigned int *celsius) { (void)device; (void)sensor; *celsius = 41; return SUCCESS; }
int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *reasons) { (void)device; *reasons = THROTTLE; return SUCCESS; }
int nvmlDeviceGetComputeMode(void *device, int *mode) { (void)device; *mode = 0; return SUCCESS; }
int nvmlDeviceGetMigMode(void *device, unsigned int *now, unsigned int *next) { (void)device; (void)now; (void)next; return NOT_SUPPORTED; }

int nvmlDeviceGetTotalEccErrors(void *device, int kind, int counter, unsigned long long *errors) {
  (void)device;
  (void)kind;
  (void)counter;
  if (ECC < 0) return NOT_SUPPORTED;
  *errors = (unsigned long long)ECC;
  return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned int *count, process_t *processes) {
  (void)device;
  if (PROCESS_BYTES == 0) {
    *count = 0;
    return SUCCESS;
  }
  if (*count == 0) {
    *count = 1;
    return INSUFFICIENT_SIZE;
  }
  *count = 1;
  memset(processes, 0, sizeof(process_t));
  processes->pid = 4711;
  processes->used = PROCESS_BYTES;
  return SUCCESS;
}
