/* Lets operations on files fail with EIO, or delays them: a disk that is broken or slow.
 *
 *     cc -shared -fPIC -o failing_io.so failing_io.c -ldl
 *     LD_PRELOAD=./failing_io.so FAILING_IO_BELOW=/abs/folder FAILING_IO_FIRST=7 python ...
 *
 * FAILING_IO_BELOW   how the absolute paths of the files begin; others are left alone and not counted
 * FAILING_IO_FIRST   number of the first operation that fails, counted from 1; 0: none does
 * FAILING_IO_LAST    number of the last one that fails (default: the first)
 * FAILING_IO_DELAY   microseconds before each operation (default: 0)
 * FAILING_IO_COUNT   file that gets the number of operations when the process ends
 *
 * Operations are those that change something: opening for writing, write, writev, pwrite, ftruncate,
 * fsync, fdatasync, rename, unlink, mkdir and rmdir. A process may begin to count anew with
 * failing_io_begin, whose arguments replace the first three variables, and ask with failing_io_count.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char below[PATH_MAX];
static atomic_long done, first, last;

static long number_of(const char *name) {
  const char *value = getenv(name);
  return value == NULL ? 0 : atol(value);
}

void failing_io_begin(const char *path, long from, long to) {
  snprintf(below, sizeof below, "%s", path);
  atomic_store(&done, 0);
  atomic_store(&first, from);
  atomic_store(&last, to);
}

long failing_io_count(void) { return atomic_load(&done); }

__attribute__((constructor)) static void begin(void) {
  const char *path = getenv("FAILING_IO_BELOW");
  long from = number_of("FAILING_IO_FIRST"), to = number_of("FAILING_IO_LAST");
  failing_io_begin(path == NULL ? "" : path, from, to ? to : from);
}

__attribute__((destructor)) static void end(void) {
  const char *path = getenv("FAILING_IO_COUNT");
  FILE *file = path == NULL ? NULL : fopen(path, "w");
  if (file != NULL) {
    fprintf(file, "%ld", failing_io_count());
    fclose(file);
  }
}

/* Whether this operation fails. The caller's errno is EIO then. */
static int fails(const char *path) {
  if (below[0] == 0 || strncmp(path, below, strlen(below)) != 0) return 0;
  long number = atomic_fetch_add(&done, 1) + 1, delay = number_of("FAILING_IO_DELAY");
  if (delay) usleep(delay);
  if (number < atomic_load(&first) || number > atomic_load(&last)) return 0;
  errno = EIO;
  return 1;
}

/* As above, of a path that may be relative to an open folder, or of an open file (path "."). */
static int fails_at(int descriptor, const char *path) {
  char link[64], whole[2 * PATH_MAX];
  if (path[0] == '/') return fails(path);
  if (descriptor == AT_FDCWD)
    snprintf(link, sizeof link, "/proc/self/cwd");
  else
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  int before = errno;
  ssize_t length = readlink(link, whole, PATH_MAX);
  errno = before;
  if (length < 0) return 0;
  snprintf(whole + length, PATH_MAX, "/%s", path);
  return fails(whole);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* A function that fails where `failing` is true, and else is the one of the C library. */
#define HOOK(type, name, parameters, arguments, failing) \
  type name parameters {                                 \
    static __typeof__(&name) next;                       \
    if (next == NULL) next = NEXT(name);                 \
    return (failing) ? -1 : next arguments;              \
  }

#define OPEN(name, parameters, arguments, descriptor)                              \
  int name parameters {                                                            \
    static __typeof__(&name) next;                                                 \
    if (next == NULL) next = NEXT(name);                                           \
    va_list rest;                                                                  \
    va_start(rest, flags);                                                         \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;        \
    va_end(rest);                                                                  \
    int writes = (flags & O_ACCMODE) != O_RDONLY || (flags & O_CREAT);             \
    return writes && fails_at(descriptor, path) ? -1 : next arguments;             \
  }

OPEN(open, (const char *path, int flags, ...), (path, flags, mode), AT_FDCWD)
OPEN(open64, (const char *path, int flags, ...), (path, flags, mode), AT_FDCWD)
OPEN(openat, (int at, const char *path, int flags, ...), (at, path, flags, mode), at)
OPEN(openat64, (int at, const char *path, int flags, ...), (at, path, flags, mode), at)

HOOK(ssize_t, write, (int file, const void *data, size_t size), (file, data, size),
     fails_at(file, "."))
HOOK(ssize_t, writev, (int file, const struct iovec *parts, int count), (file, parts, count),
     fails_at(file, "."))
HOOK(ssize_t, pwrite, (int file, const void *data, size_t size, off_t place),
     (file, data, size, place), fails_at(file, "."))
HOOK(ssize_t, pwrite64, (int file, const void *data, size_t size, off64_t place),
     (file, data, size, place), fails_at(file, "."))
HOOK(int, ftruncate, (int file, off_t size), (file, size), fails_at(file, "."))
HOOK(int, ftruncate64, (int file, off64_t size), (file, size), fails_at(file, "."))
HOOK(int, fsync, (int file), (file), fails_at(file, "."))
HOOK(int, fdatasync, (int file), (file), fails_at(file, "."))
HOOK(int, rename, (const char *from, const char *to), (from, to), fails_at(AT_FDCWD, from))
HOOK(int, renameat, (int at, const char *from, int beside, const char *to), (at, from, beside, to),
     fails_at(at, from))
HOOK(int, unlink, (const char *path), (path), fails_at(AT_FDCWD, path))
HOOK(int, unlinkat, (int at, const char *path, int flags), (at, path, flags), fails_at(at, path))
HOOK(int, mkdir, (const char *path, mode_t mode), (path, mode), fails_at(AT_FDCWD, path))
HOOK(int, mkdirat, (int at, const char *path, mode_t mode), (at, path, mode), fails_at(at, path))
HOOK(int, rmdir, (const char *path), (path), fails_at(AT_FDCWD, path))
