/* A CUDA runtime without a GPU, preloaded before libcudart.so.13 by build.py.
 *
 * Device memory is host memory, everything asked for happens at once, and no kernel can be launched: those of
 * PyTorch are replaced in Python (simulated_gpu.py). What PyTorch has around its kernels is its own: the caching
 * allocator, streams, events, autograd's device threads, autocast, captured graphs.
 */
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define EXPORT __attribute__((visibility("default")))
#define SIMPLE(name, arguments, statements) \
    EXPORT cudaError_t name arguments { statements; return cudaSuccess; }

/* --- what simulated_gpu.py reads and sets ------------------------------------------------------------- */

typedef void (*callback_type)(int what, unsigned long long graph);
enum { CAPTURE_BEGINS = 1, CAPTURE_ENDS = 2, GRAPH_LAUNCHED = 3 };
static callback_type callback;
EXPORT void sim_set_callback(callback_type function) { callback = function; }
EXPORT atomic_int sim_capturing;       /* streams that are being captured */
EXPORT atomic_ullong sim_captured_ops; /* operations in the capture under way */
EXPORT atomic_ullong sim_waits;        /* calls that make the host wait for a stream or the device */
EXPORT atomic_ullong sim_event_waits;  /* … and for an event */
EXPORT atomic_ullong sim_graphs;       /* graphs that were launched */

/* --- streams, events, graphs -------------------------------------------------------------------------- */

struct CUstream_st { int capturing; cudaGraph_t graph; };
struct CUevent_st { int recorded, captured; cudaGraph_t graph; };
struct CUgraph_st { unsigned long long id; };
struct CUgraphExec_st { unsigned long long id; };
static struct CUstream_st default_streams[16];
static atomic_ullong next_graph = 1;
static _Thread_local int current_device;
static _Thread_local cudaError_t last_error;

static cudaError_t fail(cudaError_t error) { return last_error = error; }
static struct CUstream_st *of(cudaStream_t s) {
    return s == 0 || s == cudaStreamLegacy || s == cudaStreamPerThread ? &default_streams[current_device] : s;
}
static cudaError_t wait_on_host(int forbidden, atomic_ullong *counter) {
    if (forbidden) return fail(cudaErrorStreamCaptureUnsupported);
    ++*counter;
    return cudaSuccess;
}
EXPORT int sim_stream_capturing(unsigned long long s) { return of((cudaStream_t)s)->capturing; }

SIMPLE(cudaStreamCreateWithPriority, (cudaStream_t *s, unsigned flags, int priority), *s = calloc(1, sizeof **s))
SIMPLE(cudaStreamCreateWithFlags, (cudaStream_t *s, unsigned flags), *s = calloc(1, sizeof **s))
SIMPLE(cudaStreamCreate, (cudaStream_t *s), *s = calloc(1, sizeof **s))
SIMPLE(cudaStreamDestroy, (cudaStream_t s), )
SIMPLE(cudaStreamGetPriority, (cudaStream_t s, int *priority), *priority = 0)
SIMPLE(cudaDeviceGetStreamPriorityRange, (int *least, int *greatest), *least = 0; *greatest = -5)
EXPORT cudaError_t cudaStreamQuery(cudaStream_t s) {
    return of(s)->capturing ? fail(cudaErrorStreamCaptureUnsupported) : cudaSuccess;
}
EXPORT cudaError_t cudaStreamSynchronize(cudaStream_t s) { return wait_on_host(of(s)->capturing, &sim_waits); }
EXPORT cudaError_t cudaDeviceSynchronize(void) { return wait_on_host(sim_capturing, &sim_waits); }
EXPORT cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags) {
    if (!e->recorded || of(s)->capturing == e->captured) return cudaSuccess;
    /* A captured stream waits for nothing outside; a stream that waits for a captured one is captured, too. */
    if (of(s)->capturing) return fail(cudaErrorStreamCaptureIsolation);
    of(s)->capturing = 1;
    of(s)->graph = e->graph;
    return cudaSuccess;
}
SIMPLE(cudaEventCreateWithFlags, (cudaEvent_t *e, unsigned flags), *e = calloc(1, sizeof **e))
SIMPLE(cudaEventCreate, (cudaEvent_t *e), *e = calloc(1, sizeof **e))
SIMPLE(cudaEventDestroy, (cudaEvent_t e), free(e))
SIMPLE(cudaEventRecord, (cudaEvent_t e, cudaStream_t s),
    e->recorded = 1; e->captured = of(s)->capturing; e->graph = of(s)->graph)
EXPORT cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned flags) { return cudaEventRecord(e, s); }
EXPORT cudaError_t cudaEventQuery(cudaEvent_t e) {
    return e->recorded && e->captured ? fail(cudaErrorCapturedEvent) : cudaSuccess;
}
EXPORT cudaError_t cudaEventSynchronize(cudaEvent_t e) {
    return e->recorded ? wait_on_host(e->captured, &sim_event_waits) : cudaSuccess;
}
SIMPLE(cudaEventElapsedTime, (float *ms, cudaEvent_t a, cudaEvent_t b), *ms = 0) /* times are no figures here */

EXPORT cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode mode) {
    if (s == 0 || of(s)->capturing) return fail(cudaErrorStreamCaptureUnsupported);
    of(s)->capturing = 1;
    of(s)->graph = calloc(1, sizeof(struct CUgraph_st));
    of(s)->graph->id = next_graph++;
    sim_capturing++;
    sim_captured_ops = 0;
    callback(CAPTURE_BEGINS, of(s)->graph->id);
    return cudaSuccess;
}
EXPORT cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *graph) {
    if (!of(s)->capturing) return fail(cudaErrorStreamCaptureUnsupported);
    *graph = of(s)->graph;
    of(s)->capturing = 0;
    sim_capturing--;
    callback(CAPTURE_ENDS, (*graph)->id);
    return cudaSuccess;
}
static enum cudaStreamCaptureStatus status_of(cudaStream_t s) {
    return of(s)->capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
}
SIMPLE(cudaStreamIsCapturing, (cudaStream_t s, enum cudaStreamCaptureStatus *status), *status = status_of(s))
EXPORT cudaError_t cudaStreamGetCaptureInfo(cudaStream_t s, enum cudaStreamCaptureStatus *status, unsigned long long *id,
    cudaGraph_t *graph, const cudaGraphNode_t **nodes, const cudaGraphEdgeData **edges, size_t *n) {
    *status = status_of(s);
    if (id) *id = of(s)->graph ? of(s)->graph->id : 0;
    if (graph) *graph = of(s)->graph;
    if (nodes) *nodes = 0;
    if (edges) *edges = 0;
    if (n) *n = 0;
    return cudaSuccess;
}
SIMPLE(cudaStreamUpdateCaptureDependencies,
    (cudaStream_t s, cudaGraphNode_t *nodes, const cudaGraphEdgeData *edges, size_t n, unsigned flags), )
EXPORT cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) {
    static _Thread_local enum cudaStreamCaptureMode own = cudaStreamCaptureModeGlobal;
    enum cudaStreamCaptureMode before = own;
    own = *mode;
    *mode = before;
    return cudaSuccess;
}
SIMPLE(cudaGraphInstantiateWithFlags, (cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags),
    *exec = calloc(1, sizeof **exec); (*exec)->id = graph->id)
SIMPLE(cudaGraphLaunch, (cudaGraphExec_t exec, cudaStream_t s), sim_graphs++; callback(GRAPH_LAUNCHED, exec->id))
SIMPLE(cudaGraphDestroy, (cudaGraph_t graph), )
SIMPLE(cudaGraphExecDestroy, (cudaGraphExec_t exec), )
SIMPLE(cudaGraphGetNodes, (cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *n), *n = sim_captured_ops)
SIMPLE(cudaUserObjectCreate, (cudaUserObject_t *o, void *p, cudaHostFn_t destroy, unsigned n, unsigned flags), )
SIMPLE(cudaUserObjectRelease, (cudaUserObject_t o, unsigned n), )
SIMPLE(cudaGraphRetainUserObject, (cudaGraph_t g, cudaUserObject_t o, unsigned n, unsigned flags), )

/* --- memory ------------------------------------------------------------------------------------------- */

enum { PAGEABLE, PINNED, DEVICE };
struct block { char *at; size_t size; int kind; struct block *next; };
static struct block *blocks;
static size_t used;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static size_t total(void) {
    const char *bytes = getenv("SIMULATED_GPU_BYTES");
    return bytes ? strtoull(bytes, 0, 10) : 80ull << 30;
}
static cudaError_t allocate(void **at, size_t size, int kind) {
    cudaError_t error = cudaSuccess;
    pthread_mutex_lock(&lock);
    *at = kind == DEVICE && used + size > total() ? MAP_FAILED
        : mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (*at == MAP_FAILED) {
        *at = 0;
        error = fail(cudaErrorMemoryAllocation);
    } else {
        struct block *b = malloc(sizeof *b);
        *b = (struct block){*at, size, kind, blocks};
        blocks = b;
        if (kind == DEVICE) used += size;
    }
    pthread_mutex_unlock(&lock);
    return error;
}
static cudaError_t release(void *at) {
    pthread_mutex_lock(&lock);
    for (struct block **p = &blocks; at && *p; p = &(*p)->next)
        if ((*p)->at == at) {
            struct block *b = *p;
            *p = b->next;
            if (b->kind == DEVICE) used -= b->size;
            munmap(b->at, b->size);
            free(b);
            break;
        }
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}
EXPORT int sim_kind(unsigned long long at) {
    int kind = PAGEABLE;
    pthread_mutex_lock(&lock);
    for (struct block *b = blocks; b; b = b->next)
        if ((char *)at >= b->at && (char *)at < b->at + b->size) kind = b->kind;
    pthread_mutex_unlock(&lock);
    return kind;
}
EXPORT cudaError_t cudaMalloc(void **at, size_t size) { return allocate(at, size, DEVICE); }
EXPORT cudaError_t cudaFree(void *at) { return release(at); }
EXPORT cudaError_t cudaHostAlloc(void **at, size_t size, unsigned flags) { return allocate(at, size, PINNED); }
EXPORT cudaError_t cudaFreeHost(void *at) { return release(at); }
SIMPLE(cudaMemGetInfo, (size_t *free_, size_t *total_), *total_ = total(); *free_ = total() - used)
EXPORT cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p) {
    static const enum cudaMemoryType types[] = {cudaMemoryTypeUnregistered, cudaMemoryTypeHost, cudaMemoryTypeDevice};
    int kind = sim_kind((unsigned long long)p);
    *a = (struct cudaPointerAttributes){.type = types[kind], .device = kind ? current_device : -1,
        .devicePointer = (void *)p, .hostPointer = (void *)p};
    return cudaSuccess;
}
SIMPLE(cudaMemcpy, (void *d, const void *s, size_t n, enum cudaMemcpyKind k), sim_waits++; memmove(d, s, n))
static void not_captured(const char *what) {
    if (!sim_capturing) return;
    fprintf(stderr, "simulated GPU: %s in a captured step is not simulated; add it to cudart.c\n", what);
    _exit(97);
}
SIMPLE(cudaMemcpyAsync, (void *d, const void *s, size_t n, enum cudaMemcpyKind k, cudaStream_t stream),
    not_captured("cudaMemcpyAsync"); memmove(d, s, n))
SIMPLE(cudaMemset, (void *d, int v, size_t n), memset(d, v, n))
SIMPLE(cudaMemsetAsync, (void *d, int v, size_t n, cudaStream_t s), not_captured("cudaMemsetAsync"); memset(d, v, n))

/* --- the device --------------------------------------------------------------------------------------- */

static int devices(void) {
    const char *visible = getenv("CUDA_VISIBLE_DEVICES"), *n = getenv("SIMULATED_GPUS");
    return visible && !*visible ? 0 : n ? atoi(n) : 1;
}
EXPORT cudaError_t cudaGetDeviceCount(int *n) { return (*n = devices()) ? cudaSuccess : fail(cudaErrorNoDevice); }
SIMPLE(cudaGetDevice, (int *d), *d = current_device)
EXPORT cudaError_t cudaSetDevice(int d) {
    if (d < 0 || d >= devices()) return fail(cudaErrorInvalidDevice);
    current_device = d;
    return cudaSuccess;
}
EXPORT cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int d) {
    *p = (struct cudaDeviceProp){.name = "simulated GPU (computed by the CPU)", .totalGlobalMem = total(),
        .sharedMemPerBlock = 49152, .sharedMemPerBlockOptin = 232448, .sharedMemPerMultiprocessor = 233472,
        .regsPerBlock = 65536, .regsPerMultiprocessor = 65536, .warpSize = 32, .maxThreadsPerBlock = 1024,
        .maxThreadsPerMultiProcessor = 2048, .maxThreadsDim = {1024, 1024, 64}, .major = 9, .minor = 0,
        .maxGridSize = {2147483647, 65535, 65535}, .multiProcessorCount = 132, .l2CacheSize = 50 << 20,
        .unifiedAddressing = 1, .canMapHostMemory = 1, .concurrentKernels = 1, .asyncEngineCount = 3};
    return cudaSuccess;
}
SIMPLE(cudaDeviceGetAttribute, (int *v, enum cudaDeviceAttr a, int d),
    *v = a == cudaDevAttrComputeCapabilityMajor ? 9 : a == cudaDevAttrMultiProcessorCount ? 132
        : a == cudaDevAttrWarpSize ? 32 : 0)
SIMPLE(cudaDeviceGetPCIBusId, (char *id, int n, int d), snprintf(id, n, "0000:%02x:00.0", d))
SIMPLE(cudaDriverGetVersion, (int *v), *v = 13000)
SIMPLE(cudaRuntimeGetVersion, (int *v), *v = 13000)
SIMPLE(cudaDeviceCanAccessPeer, (int *yes, int a, int b), *yes = 0)
EXPORT cudaError_t cudaGetLastError(void) {
    cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}
EXPORT cudaError_t cudaPeekAtLastError(void) { return last_error; }

/* --- kernels: none can run ---------------------------------------------------------------------------- */

static struct named { const void *function; const char *name; } *names;
static size_t named, room;
EXPORT void __cudaRegisterFunction(void **fat, const char *host, char *device, const char *name, int limit, void *a,
    void *b, void *c, void *d, int *e) {
    pthread_mutex_lock(&lock);
    if (named == room) names = realloc(names, (room = room ? 2 * room : 4096) * sizeof *names);
    names[named++] = (struct named){host, name};
    pthread_mutex_unlock(&lock);
}
static cudaError_t launched(const void *function) {
    const char *name = "of an unknown name";
    for (size_t i = 0; i < named; i++)
        if (names[i].function == function) name = names[i].name;
    fprintf(stderr, "simulated GPU: torch launched a kernel, %s, that nothing replaces: add the operator that "
        "launches it to FUNCTIONS in tests/simulated_gpu/simulated_gpu.py\n", name);
    return fail(cudaErrorNoKernelImageForDevice);
}
SIMPLE(__cudaGetKernel, (cudaKernel_t *k, const void *function), *k = (cudaKernel_t)function)
EXPORT cudaError_t __cudaLaunchKernel(cudaKernel_t k, dim3 g, dim3 b, void **args, size_t shared, cudaStream_t s) {
    return launched(k);
}
EXPORT cudaError_t cudaLaunchKernel(const void *f, dim3 g, dim3 b, void **args, size_t shared, cudaStream_t s) {
    return launched(f);
}
EXPORT cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *f, void **args) { return launched(f); }
SIMPLE(cudaFuncGetAttributes, (struct cudaFuncAttributes *a, const void *f), memset(a, 0, sizeof *a))
SIMPLE(cudaFuncSetAttribute, (const void *f, enum cudaFuncAttribute a, int v), )

/* --- the driver: build.py links libcuda.so.1 to this library, because torch opens it ------------------- */

#define REFUSED(name) EXPORT int name(void) { return 801; } /* not supported */
#define DRIVER(name, arguments, statements) EXPORT int name arguments { statements; return 0; }
DRIVER(cuInit, (unsigned flags), )
DRIVER(cuDriverGetVersion, (int *v), *v = 13000)
DRIVER(cuDevicePrimaryCtxGetState, (int d, unsigned *flags, int *active), if (flags) *flags = 0; *active = 1)
DRIVER(cuCtxGetCurrent, (void **context), *context = (void *)1)
DRIVER(cuCtxSetCurrent, (void *context), )
DRIVER(cuGetErrorString, (int error, const char **text), *text = "not simulated")
DRIVER(cuDeviceGetAttribute, (int *v, int attribute, int d), *v = 0)
DRIVER(cuPointerGetAttribute, (void *data, int attribute, unsigned long long p), *(unsigned long long *)data = p)
REFUSED(cuModuleLoad) REFUSED(cuModuleLoadData) REFUSED(cuModuleLoadDataEx) REFUSED(cuModuleUnload)
REFUSED(cuModuleGetFunction) REFUSED(cuFuncGetAttribute) REFUSED(cuFuncSetAttribute) REFUSED(cuLaunchKernel)
REFUSED(cuLaunchKernelEx) REFUSED(cuLaunchCooperativeKernel) REFUSED(cuLinkAddData_v2) REFUSED(cuLinkComplete)
REFUSED(cuLinkCreate_v2) REFUSED(cuOccupancyMaxActiveBlocksPerMultiprocessor) REFUSED(cuTensorMapEncodeTiled)
REFUSED(cuOccupancyMaxActiveClusters)
