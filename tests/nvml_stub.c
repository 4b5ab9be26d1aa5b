/* A stand-in for the NVIDIA driver's management library, so that the real pynvml can be tested without a GPU.
 *
 * What it says is set by the environment:
 *   STUB_DRIVER      driver version, default 580.65.06
 *   STUB_CUDA        newest CUDA it serves, default 13000
 *   STUB_GPUS        number of GPUs, default 1
 *   STUB_REFUSES     names of functions that answer "not supported", in any order
 *   STUB_INIT        result of the initialisation, default 0
 *   STUB_PROCESSES   how it knows the processes on a GPU: "listed", "untold" (without their memory), default none
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7 };

static const unsigned long long NOT_AVAILABLE = -1ull;

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

int nvmlDeviceGetHandleByPciBusId_v2(const char *id, void **handle) {
    ANSWER_UNLESS_REFUSED;
    if (strcmp(id, "0000:01:00.0")) return INVALID_ARGUMENT;
    *handle = (void *)1;
    return SUCCESS;
}

typedef struct {
    unsigned pid;
    unsigned long long used;
    unsigned instance, compute_instance;
} Process;

/* Init of the machine, with 5 GiB, and whoever asks, with 3. */
int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, Process *processes) {
    (void)handle;
    ANSWER_UNLESS_REFUSED;
    const char *known = setting("STUB_PROCESSES", "");
    if (!*known) {
        *count = 0;
        return SUCCESS;
    }
    unsigned room = *count;
    *count = 2;
    if (!processes || room < 2) return INSUFFICIENT_SIZE;
    int told = !strcmp(known, "listed");
    processes[0] = (Process){1, 5ull << 30, 0, 0};
    processes[1] = (Process){(unsigned)getpid(), told ? 3ull << 30 : NOT_AVAILABLE, 0, 0};
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(void *handle, unsigned *rates) {
    (void)handle;
    ANSWER_UNLESS_REFUSED;
    rates[0] = 43; /* of the GPU, then of its memory */
    rates[1] = 21;
    return SUCCESS;
}

int nvmlDeviceGetPcieThroughput(void *handle, unsigned counter, unsigned *kilobytes) {
    (void)handle;
    ANSWER_UNLESS_REFUSED;
    *kilobytes = counter ? 9000 : 100; /* received; sent */
    return SUCCESS;
}
