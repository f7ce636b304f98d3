/* A CUDA driver in host memory for tests: the calls of meddet_yolo.trt.cuda_backends with the driver's rules.
 * Work in the stream waits for a synchronisation; in a capture it goes into the graph. */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID_VALUE = 1, NOT_INITIALIZED = 3, INVALID_CONTEXT = 201, NOT_FOUND = 500, CAPTURE = 900 };
typedef void (*Work)(void *);
typedef struct { char kind; void *to; const void *from; size_t size; Work work; } Op;
typedef struct { Op *ops; size_t count; } Ops;

static int initialized, contexts, capturing, live, launches;
static __thread int current;
static Ops queue, graph;
static float now;
static size_t used;

static void add(Ops *to, Op op) {
    to->ops = realloc(to->ops, (to->count + 1) * sizeof(Op));
    to->ops[to->count++] = op;
}
static int put(Op op) {
    if (!current) return INVALID_CONTEXT;
    add(capturing ? &graph : &queue, op);
    return OK;
}
#define NEED_CONTEXT if (!current) return INVALID_CONTEXT
#define NOT_IN_CAPTURE if (capturing) return CAPTURE

int fake_live(void) { return live; }
int fake_launches(void) { return launches; }
int fake_capturing(void) { return capturing; }
size_t fake_size(void *p) { return ((size_t *)p)[-2]; }
int fake_enqueue(Work work, void *data) { return put((Op){'w', data, 0, 0, work}); }

int cuInit(unsigned flags) { initialized = 1; return OK; }
int cuDriverGetVersion(int *v) { *v = 13000; return OK; }
int cuDeviceGetCount(int *n) { *n = getenv("FAKE_NO_GPU") ? 0 : 1; return initialized ? OK : NOT_INITIALIZED; }
int cuDeviceGet(int *d, int i) { *d = i; return i == 0 ? OK : 101; }
int cuDeviceGetName(char *name, int n, int d) { snprintf(name, n, "Fake GPU"); return OK; }
int cuDeviceGetAttribute(int *v, int what, int d) { *v = what == 75 ? 8 : what == 76 ? 6 : 0; return OK; }
int cuDevicePrimaryCtxRetain(void **c, int d) { *c = (void *)0x77; contexts++; live++; return OK; }
int cuDevicePrimaryCtxRelease(int d) { contexts--; live--; return OK; }
int cuCtxPushCurrent(void *c) { if (!contexts) return INVALID_CONTEXT; current++; return OK; }
int cuCtxPopCurrent(void **c) { NEED_CONTEXT; *c = (void *)0x77; current--; return OK; }
int cuMemGetInfo(size_t *f, size_t *t) { NEED_CONTEXT; *t = 1 << 30; *f = *t - used; return OK; }

static void *block(size_t n) {
    size_t *p = malloc(n + 2 * sizeof(size_t));
    p[0] = n;
    memset(p + 2, 0xEE, n);
    live++;
    return p + 2;
}
static void unblock(void *p) { live--; free((size_t *)p - 2); }
int cuMemHostAlloc(void **p, size_t n, unsigned f) { NEED_CONTEXT; NOT_IN_CAPTURE; *p = block(n); return OK; }
int cuMemFreeHost(void *p) { NEED_CONTEXT; unblock(p); return OK; }
int cuMemAlloc(void **p, size_t n) { NEED_CONTEXT; NOT_IN_CAPTURE; *p = block(n); used += n; return OK; }
int cuMemFree(void *p) { NEED_CONTEXT; used -= fake_size(p); unblock(p); return OK; }

int cuStreamCreate(void **s, unsigned f) { NEED_CONTEXT; *s = (void *)0x55; live++; return f == 1 ? OK : INVALID_VALUE; }
int cuStreamDestroy(void *s) { NEED_CONTEXT; live--; return OK; }
static int check(void *s) { return s == (void *)0x55 ? OK : INVALID_VALUE; }
int cuMemcpyHtoDAsync(void *d, const void *h, size_t n, void *s) {
    if (n > fake_size(d) || check(s)) return INVALID_VALUE;
    return put((Op){'c', d, h, n, 0});
}
int cuMemcpyDtoHAsync(void *h, const void *d, size_t n, void *s) {
    if (n > fake_size((void *)d) || check(s)) return INVALID_VALUE;
    return put((Op){'c', h, d, n, 0});
}
int cuEventCreate(void **e, unsigned f) { NEED_CONTEXT; *e = calloc(1, sizeof(float)); live++; return OK; }
int cuEventDestroy(void *e) { live--; free(e); return OK; }
int cuEventRecord(void *e, void *s) { return check(s) ? INVALID_VALUE : put((Op){'e', e, 0, 0, 0}); }
int cuEventElapsedTime(float *ms, void *a, void *b) { *ms = *(float *)b - *(float *)a; return OK; }
static void run(Op op) {
    now += 0.5f;
    if (op.kind == 'c') memcpy(op.to, op.from, op.size);
    if (op.kind == 'w') op.work(op.to);
    if (op.kind == 'e') *(float *)op.to = now;
    if (op.kind == 'g') {
        Ops *g = op.to;
        for (size_t i = 0; i < g->count; i++) run(g->ops[i]);
    }
}
int cuStreamSynchronize(void *s) {
    NEED_CONTEXT;
    NOT_IN_CAPTURE;
    if (check(s)) return INVALID_VALUE;
    for (size_t i = 0; i < queue.count; i++) run(queue.ops[i]);
    queue.count = 0;
    return OK;
}
int cuStreamBeginCapture(void *s, int mode) {
    NEED_CONTEXT;
    if (check(s) || capturing || mode != 1) return INVALID_VALUE;
    capturing = 1;
    graph = (Ops){0};
    return OK;
}
int cuStreamEndCapture(void *s, void **g) {
    if (!capturing) return INVALID_VALUE;
    capturing = 0;
    Ops *made = malloc(sizeof(Ops));
    *made = graph;
    *g = made;
    live++;
    return OK;
}
int cuGraphInstantiateWithFlags(void **e, void *g, unsigned long long f) {
    Ops *made = malloc(sizeof(Ops));
    *made = *(Ops *)g;
    *e = made;
    live++;
    return OK;
}
int cuGraphDestroy(void *g) { live--; free(g); return OK; }
int cuGraphExecDestroy(void *g) { NEED_CONTEXT; live--; free(g); return OK; }
int cuGraphLaunch(void *g, void *s) {
    launches++;
    return check(s) ? INVALID_VALUE : put((Op){'g', g, 0, 0, 0});
}
int cuStreamBeginCapture_v2(void *s, int mode) { return cuStreamBeginCapture(s, mode); }
int cuGetErrorName(int e, const char **s) { *s = "FAKE"; return OK; }
int cuGetErrorString(int e, const char **s) { *s = "fake"; return OK; }

#define ENTRY(name) {#name, (void *)name}
static struct { const char *name; void *call; } table[] = {
    ENTRY(cuInit), ENTRY(cuDriverGetVersion), ENTRY(cuDeviceGetCount), ENTRY(cuDeviceGet), ENTRY(cuDeviceGetName),
    ENTRY(cuDeviceGetAttribute), ENTRY(cuDevicePrimaryCtxRetain), ENTRY(cuDevicePrimaryCtxRelease),
    ENTRY(cuCtxPushCurrent), ENTRY(cuCtxPopCurrent), ENTRY(cuMemGetInfo), ENTRY(cuMemHostAlloc), ENTRY(cuMemFreeHost),
    ENTRY(cuMemAlloc), ENTRY(cuMemFree), ENTRY(cuStreamCreate), ENTRY(cuStreamDestroy), ENTRY(cuStreamSynchronize),
    ENTRY(cuMemcpyHtoDAsync), ENTRY(cuMemcpyDtoHAsync), ENTRY(cuEventCreate), ENTRY(cuEventDestroy),
    ENTRY(cuEventRecord), ENTRY(cuEventElapsedTime), ENTRY(cuStreamBeginCapture), ENTRY(cuStreamEndCapture),
    ENTRY(cuGraphInstantiateWithFlags), ENTRY(cuGraphDestroy), ENTRY(cuGraphExecDestroy), ENTRY(cuGraphLaunch),
    ENTRY(cuGetErrorName), ENTRY(cuGetErrorString),
};
int cuGetProcAddress_v2(const char *symbol, void **call, int version, uint64_t flags, int *status) {
    *call = 0;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (!strcmp(table[i].name, symbol)) *call = table[i].call;
    if (!strcmp(symbol, "cuGraphInstantiate")) *call = (void *)cuGraphInstantiateWithFlags;
    if (!strcmp(symbol, "cuGetProcAddress")) *call = (void *)cuGetProcAddress_v2;
    if (status) *status = *call ? 0 : 1;
    return *call ? OK : NOT_FOUND;
}
int cuGetProcAddress(const char *symbol, void **call, int version, uint64_t flags) {
    return cuGetProcAddress_v2(symbol, call, version, flags, 0);
}
