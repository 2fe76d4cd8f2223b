// Answers for NVIDIA's management library as a machine with one Tesla T4 has them, with the driver that DRIVER names. The functions and
// structs are those of NVIDIA's public nvml.h.
#include <stdlib.h>
#include <string.h>

typedef struct {
  unsigned int version;
  unsigned long long total, reserved, free, used;
} nvmlMemory_v2_t;
typedef struct {
  char busIdLegacy[16];
  unsigned int domain, bus, device, pciDeviceId, pciSubSystemId;
  char busId[32];
} nvmlPciInfo_t;

int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned int length) {
  strncpy(text, getenv("DRIVER"), length);
  return 0;
}
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = 1; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) { *device = (void *)1; return index != 0; }
int nvmlDeviceGetName(void *device, char *text, unsigned int length) { strncpy(text, "Tesla T4", length); return 0; }
int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) { *major = 7; *minor = 5; return 0; }
int nvmlDeviceGetMemoryInfo_v2(void *device, nvmlMemory_v2_t *memory) {
  memory->total = 16ull << 30;
  memory->free = 15ull << 30;
  return 0;
}
int nvmlDeviceGetPciInfo_v3(void *device, nvmlPciInfo_t *info) {
  memset(info, 0, sizeof *info);
  strcpy(info->busId, "00000000:3B:00.0");
  return 0;
}
