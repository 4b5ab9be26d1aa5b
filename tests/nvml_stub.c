/* A stand-in for the NVIDIA driver's management library, so that the real pynvml can be tested without a GPU.
 *
 * What it says is set by the environment:
 *   STUB_DRIVER      driver version, default 580.65.06
 *   STUB_CUDA        newest CUDA it serves, default 13000
 *   STUB_GPUS        number of GPUs, default 1
 *   STUB_REFUSES     names of functions that answer "not supported", in any order
 *   STUB_INIT        result of the initialisation, default 0
 */
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3 };

typedef struct {
    unsigned long long total, free, used;
} Memory;

static const char *setting(const char *name, const char *usual) {
    const char *value = getenv(name);
    return value ? value : usual;
}

static int refuses(const char *function) { return strstr(setting("STUB_REFUSES", ""), function) != NULL; }

#define ANSWER_UNLESS_REFUSED if (refuses(__func__)) return NOT_SUPPORTED

static int write_text(const char *text, char *buffer, unsigned size) {
    strncpy(buffer, text, size - 1);
    buffer[size - 1] = 0;
    return SUCCESS;
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    return atoi(setting("STUB_INIT", "0"));
}

int nvmlShutdown(void) { return SUCCESS; }

int nvmlSystemGetDriverVersion(char *buffer, unsigned size) {
    ANSWER_UNLESS_REFUSED;
    return write_text(setting("STUB_DRIVER", "580.65.06"), buffer, size);
}

int nvmlSystemGetCudaDriverVersion_v2(int *version) {
    ANSWER_UNLESS_REFUSED;
    *version = atoi(setting("STUB_CUDA", "13000"));
    return SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    ANSWER_UNLESS_REFUSED;
    *count = (unsigned)atoi(setting("STUB_GPUS", "1"));
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    ANSWER_UNLESS_REFUSED;
    if ((int)index >= atoi(setting("STUB_GPUS", "1"))) return INVALID_ARGUMENT;
    *handle = (void *)(size_t)(index + 1);
    return SUCCESS;
}

int nvmlDeviceGetName(void *handle, char *buffer, unsigned size) {
    (void)handle;
    ANSWER_UNLESS_REFUSED;
    return write_text("Stub T4", buffer, size);
}

/* 15 GiB, of which GPU n has n GiB in use, counted from 1. */
int nvmlDeviceGetMemoryInfo(void *handle, Memory *memory) {
    ANSWER_UNLESS_REFUSED;
    memory->total = 15ull << 30;
    memory->used = (unsigned long long)(size_t)handle << 30;
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

int nvmlDeviceGetCudaComputeCapability(void *handle, int *major, int *minor) {
    (void)handle;
    ANSWER_UNLESS_REFUSED;
    *major = 7;
    *minor = 5;
    return SUCCESS;
}
