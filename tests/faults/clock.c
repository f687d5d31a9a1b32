/* A clock that jumps, for LD_PRELOAD: FAULT_AFTER seconds after the process began, the time of day is FAULT_JUMP seconds
   later (or, negative, earlier) than it was. The monotonic clock goes on as it does. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

typedef int (*Gettime)(clockid_t, struct timespec *);

static Gettime real(void) {
    static Gettime found;
    if (!found) found = (Gettime)dlsym(RTLD_NEXT, "clock_gettime");
    return found;
}

static double began;

__attribute__((constructor)) static void begin(void) {
    struct timespec now;
    real()(CLOCK_MONOTONIC, &now);
    began = now.tv_sec + 1e-9 * now.tv_nsec;
}

static long long jump(void) {
    const char *after = getenv("FAULT_AFTER"), *by = getenv("FAULT_JUMP");
    struct timespec now;
    real()(CLOCK_MONOTONIC, &now);
    return after && by && now.tv_sec + 1e-9 * now.tv_nsec - began >= atof(after) ? atoll(by) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = real()(clock, now);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += jump();
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec found;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &found)) return -1;
    now->tv_sec = found.tv_sec;
    now->tv_usec = found.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    if (out) *out = found.tv_sec;
    return found.tv_sec;
}
