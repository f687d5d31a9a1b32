/* A disk that fails, for LD_PRELOAD: below the folder FAULT_FOLDER, after FAULT_BYTES bytes were written there (or
   read, with FAULT_OF=read), every further call fails with FAULT_ERRNO. A write that crosses the limit is cut short,
   as a full disk cuts it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long long left = -1;

static int below(int fd) {
    const char *folder = getenv("FAULT_FOLDER");
    char link[64], path[PATH_MAX];
    if (!folder) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n <= 0) return 0;
    path[n] = 0;
    return strncmp(path, folder, strlen(folder)) == 0;
}

static int is_of(const char *what) {
    const char *of = getenv("FAULT_OF");
    return strcmp(of ? of : "write", what) == 0;
}

/* How many of the bytes may pass; -1 with errno set where none may. */
static ssize_t allowed(const char *what, int fd, size_t count) {
    if (!is_of(what) || count == 0 || !below(fd)) return count;
    pthread_mutex_lock(&lock);
    if (left < 0) left = atoll(getenv("FAULT_BYTES"));
    ssize_t now = (long long)count < left ? (ssize_t)count : (ssize_t)left;
    left -= now;
    pthread_mutex_unlock(&lock);
    if (now > 0) return now;
    errno = atoi(getenv("FAULT_ERRNO"));
    return -1;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define ONE(name, what, type, ...)                                      \
    ssize_t n = allowed(what, fd, count);                               \
    return n < 0 ? -1 : ((type)dlsym(RTLD_NEXT, name))(fd, buffer, n, ##__VA_ARGS__);

ssize_t write(int fd, const void *buffer, size_t count) { ONE("write", "write", ssize_t (*)(int, const void *, size_t)) }
ssize_t read(int fd, void *buffer, size_t count) { ONE("read", "read", ssize_t (*)(int, void *, size_t)) }
ssize_t pwrite(int fd, const void *buffer, size_t count, off_t at) {
    ONE("pwrite", "write", ssize_t (*)(int, const void *, size_t, off_t), at)
}
ssize_t pwrite64(int fd, const void *buffer, size_t count, off64_t at) {
    ONE("pwrite64", "write", ssize_t (*)(int, const void *, size_t, off64_t), at)
}
ssize_t pread(int fd, void *buffer, size_t count, off_t at) {
    ONE("pread", "read", ssize_t (*)(int, void *, size_t, off_t), at)
}
ssize_t pread64(int fd, void *buffer, size_t count, off64_t at) {
    ONE("pread64", "read", ssize_t (*)(int, void *, size_t, off64_t), at)
}

static ssize_t total(const struct iovec *parts, int count) {
    ssize_t sum = 0;
    for (int i = 0; i < count; i++) sum += parts[i].iov_len;
    return sum;
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    if (allowed("write", fd, total(parts, count)) < 0) return -1;
    return NEXT(writev)(fd, parts, count);
}

ssize_t readv(int fd, const struct iovec *parts, int count) {
    if (allowed("read", fd, total(parts, count)) < 0) return -1;
    return NEXT(readv)(fd, parts, count);
}
