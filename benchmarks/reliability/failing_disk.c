/* Preloaded into a process: the n-th write, fsync or rename under a folder fails, or every one from there on.

   fail_arm(folder, at, count, error)   counts anew; at = 0 only counts; count = how many in a row fail
   fail_seen()                          how many there were since

   Sockets and other folders are not counted. What it needs: dlsym, /proc/self/fd. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static char folder[4096];
static long seen, at, count;
static int error;

void fail_arm(const char *path, long first, long how_many, int number) {
    snprintf(folder, sizeof folder, "%s", path);
    seen = 0; at = first; count = how_many; error = number;
}

long fail_seen(void) { return seen; }

static int fails_at(const char *path) {
    if (!folder[0] || strncmp(path, folder, strlen(folder))) return 0;
    long now = __sync_add_and_fetch(&seen, 1);
    if (!at || now < at || now >= at + count) return 0;
    errno = error;
    return 1;
}

static int fails(int fd) {
    char link[64], path[4096];
    if (!folder[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int saved = errno;
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = saved;
    if (length <= 0) return 0;
    path[length] = 0;
    return fails_at(path);
}

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = (type (*)(__VA_ARGS__)) dlsym(RTLD_NEXT, name)

ssize_t write(int fd, const void *data, size_t n) {
    REAL(ssize_t, "write", int, const void *, size_t);
    return fails(fd) ? -1 : real(fd, data, n);
}

ssize_t pwrite(int fd, const void *data, size_t n, off_t where) {
    REAL(ssize_t, "pwrite", int, const void *, size_t, off_t);
    return fails(fd) ? -1 : real(fd, data, n, where);
}

ssize_t pwrite64(int fd, const void *data, size_t n, off64_t where) {
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t);
    return fails(fd) ? -1 : real(fd, data, n, where);
}

int fsync(int fd) {
    REAL(int, "fsync", int);
    return fails(fd) ? -1 : real(fd);
}

int fdatasync(int fd) {
    REAL(int, "fdatasync", int);
    return fails(fd) ? -1 : real(fd);
}

int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    return fails_at(to) ? -1 : real(from, to);
}
