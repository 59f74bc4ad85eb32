/* Ends the process by SIGKILL at its n-th system call that writes below a folder.

Preloaded into a process, which calls `arm(folder, n, half)`. With `half`, a write at that call
is made by half first. `calls()` tells how many there were. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char below[PATH_MAX];
static long counted, target;
static int halves;

void arm(const char *folder, long n, int half) {
    strncpy(below, folder, sizeof below - 1);
    counted = 0;
    target = n;
    halves = half;
}

long calls(void) { return counted; }

static int is_ours(const char *path) {
    return below[0] && path && strncmp(path, below, strlen(below)) == 0;
}

static int is_ours_fd(int fd) {
    char name[64], path[PATH_MAX];
    if (!below[0]) return 0;
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(name, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return is_ours(path);
}

static int is_time(int ours) { return ours && ++counted == target; }

static void end(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

#define REAL(name) static __typeof__(name) *real; if (!real) real = dlsym(RTLD_NEXT, #name)
#define BEFORE(condition) if (is_time(condition)) end()

ssize_t write(int fd, const void *data, size_t n) {
    REAL(write);
    if (is_time(is_ours_fd(fd))) { if (halves) real(fd, data, n / 2); end(); }
    return real(fd, data, n);
}
ssize_t pwrite(int fd, const void *data, size_t n, off_t at) {
    REAL(pwrite);
    if (is_time(is_ours_fd(fd))) { if (halves) real(fd, data, n / 2, at); end(); }
    return real(fd, data, n, at);
}
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) {
    REAL(pwrite64);
    if (is_time(is_ours_fd(fd))) { if (halves) real(fd, data, n / 2, at); end(); }
    return real(fd, data, n, at);
}
ssize_t writev(int fd, const struct iovec *parts, int n) { REAL(writev); BEFORE(is_ours_fd(fd)); return real(fd, parts, n); }
ssize_t sendfile(int out, int in, off_t *at, size_t n) { REAL(sendfile); BEFORE(is_ours_fd(out)); return real(out, in, at, n); }
ssize_t sendfile64(int out, int in, off64_t *at, size_t n) { REAL(sendfile64); BEFORE(is_ours_fd(out)); return real(out, in, at, n); }
ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t n, unsigned flags) { REAL(copy_file_range); BEFORE(is_ours_fd(out)); return real(in, from, out, to, n, flags); }
int fsync(int fd) { REAL(fsync); BEFORE(is_ours_fd(fd)); return real(fd); }
int fdatasync(int fd) { REAL(fdatasync); BEFORE(is_ours_fd(fd)); return real(fd); }
int ftruncate(int fd, off_t n) { REAL(ftruncate); BEFORE(is_ours_fd(fd)); return real(fd, n); }
int ftruncate64(int fd, off64_t n) { REAL(ftruncate64); BEFORE(is_ours_fd(fd)); return real(fd, n); }
int rename(const char *a, const char *b) { REAL(rename); BEFORE(is_ours(b)); return real(a, b); }
int renameat(int c, const char *a, int d, const char *b) { REAL(renameat); BEFORE(is_ours(b)); return real(c, a, d, b); }
int link(const char *a, const char *b) { REAL(link); BEFORE(is_ours(b)); return real(a, b); }
int unlink(const char *path) { REAL(unlink); BEFORE(is_ours(path)); return real(path); }
int unlinkat(int at, const char *path, int flags) { REAL(unlinkat); BEFORE(is_ours(path) || (path[0] != '/' && at >= 0 && is_ours_fd(at))); return real(at, path, flags); }
int mkdir(const char *path, mode_t mode) { REAL(mkdir); BEFORE(is_ours(path)); return real(path, mode); }
int rmdir(const char *path) { REAL(rmdir); BEFORE(is_ours(path)); return real(path); }
int chmod(const char *path, mode_t mode) { REAL(chmod); BEFORE(is_ours(path)); return real(path, mode); }

#define OPEN(name, head, args) \
    int name head { \
        static int (*real)(int, const char *, int, ...); \
        mode_t mode = 0; \
        if (!real) real = dlsym(RTLD_NEXT, "openat"); \
        if (flags & (O_CREAT | O_TMPFILE)) { va_list list; va_start(list, flags); mode = va_arg(list, mode_t); va_end(list); } \
        BEFORE((flags & (O_CREAT | O_TRUNC)) && is_ours(path)); \
        return real args; \
    }
OPEN(open, (const char *path, int flags, ...), (AT_FDCWD, path, flags, mode))
OPEN(open64, (const char *path, int flags, ...), (AT_FDCWD, path, flags | O_LARGEFILE, mode))
OPEN(openat, (int at, const char *path, int flags, ...), (at, path, flags, mode))
OPEN(openat64, (int at, const char *path, int flags, ...), (at, path, flags | O_LARGEFILE, mode))
