#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "files_tree.h"
#include "files_walk.h"
#include "files_wire.h"

enum { OPEN_FLAGS = O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC };

/* What is asked of the one file of a call is about the root of a walk that never begins. */
#define ITSELF ""

/* Looks before it opens: opening is what a FIFO or a device may answer to. */
static int open_root(const struct walk *walk, struct stat *about, bool may_be_directory) {
    if (stat(walk->root, about) != 0)
        walk_fail_errno(walk, ITSELF);
    if (S_ISDIR(about->st_mode) && !may_be_directory)
        walk_fail(walk, ITSELF, EISDIR);
    if (!S_ISREG(about->st_mode) && !S_ISDIR(about->st_mode))
        walk_fail(walk, ITSELF, REASON_NOT_REGULAR);
    mode_t kind = about->st_mode & S_IFMT;
    int fd = open(walk->root, OPEN_FLAGS);
    if (fd < 0 || fstat(fd, about) != 0)
        walk_fail_errno(walk, ITSELF);
    if ((about->st_mode & S_IFMT) != kind)
        walk_fail(walk, ITSELF, ESTALE);
    return fd;
}

static ssize_t read_some(const struct walk *walk, const char *name, int fd, void *buffer,
                         size_t size) {
    ssize_t n;
    do
        n = read(fd, buffer, size);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        walk_fail_errno(walk, name);
    return n;
}

/* Sends up to `limit` bytes. True if the file ends with them. */
static bool send_contents(const struct walk *walk, const char *name, int fd, uint64_t limit) {
    while (limit > 0) {
        size_t room;
        unsigned char *p = wire_data_begin(&room);
        ssize_t n = read_some(walk, name, fd, p, room < limit ? room : (size_t)limit);
        if (n == 0)
            return true;
        wire_data_commit((size_t)n);
        limit -= (uint64_t)n;
    }
    char more;
    return read_some(walk, name, fd, &more, 1) == 0;
}

void file_send(const char *path, uint64_t offset, uint64_t limit, bool cut) {
    const struct walk walk = {.root = path, .fd = -1};
    struct stat about;
    int fd = open_root(&walk, &about, false);
    uint64_t size = (uint64_t)about.st_size;
    if (!cut && size > offset && size - offset > limit)
        walk_fail(&walk, ITSELF, REASON_TOO_LARGE);
    wire_entry("", &about, "");
    if (offset > 0 && lseek(fd, (off_t)offset, SEEK_SET) < 0)
        walk_fail_errno(&walk, ITSELF);
    if (!send_contents(&walk, ITSELF, fd, limit) && !cut) /* it has grown, or has no size (/proc) */
        walk_fail(&walk, ITSELF, REASON_TOO_LARGE);
}

static void pack_contents(const struct walk *walk, const char *name, int fd) {
    send_contents(walk, name, fd, UINT64_MAX);
    wire_mark(RECORD_CLOSE);
    close(fd);
}

/* -1 when it is gone. */
static int open_child(const struct walk *walk, const char *name, mode_t kind, struct stat *about) {
    int fd = openat(walk->fd, name, OPEN_FLAGS | O_NOFOLLOW);
    if (fd < 0 && errno == ENOENT)
        return -1;
    if (fd < 0 || fstat(fd, about) != 0)
        walk_fail_errno(walk, name);
    if ((about->st_mode & S_IFMT) != kind)
        walk_fail(walk, name, ESTALE);
    return fd;
}

static void pack_link(const struct walk *walk, const char *name, const struct stat *about) {
    char target[PATH_MAX];
    ssize_t length = readlinkat(walk->fd, name, target, sizeof target - 1);
    if (length < 0 && errno == ENOENT)
        return;
    if (length < 0)
        walk_fail_errno(walk, name);
    target[length] = 0;
    wire_entry(name, about, target);
}

static void pack_child(struct walk *walk, const char *name) {
    struct stat about;
    if (fstatat(walk->fd, name, &about, AT_SYMLINK_NOFOLLOW) != 0) {
        if (errno != ENOENT)
            walk_fail_errno(walk, name);
        return;
    }
    if (S_ISLNK(about.st_mode)) {
        pack_link(walk, name, &about);
        return;
    }
    if (!S_ISREG(about.st_mode) && !S_ISDIR(about.st_mode)) {
        wire_entry(name, &about, "");
        return;
    }
    if (S_ISDIR(about.st_mode) && walk->depth == TREE_DEPTH)
        walk_fail(walk, name, REASON_TOO_DEEP);
    int fd = open_child(walk, name, about.st_mode & S_IFMT, &about);
    if (fd < 0)
        return;
    wire_entry(name, &about, "");
    if (S_ISREG(about.st_mode)) {
        pack_contents(walk, name, fd);
    } else {
        walk_enter(walk, fd, name, NO_MODE);
        walk_read_names(walk);
    }
}

void tree_pack(const char *path) {
    struct walk walk = {.root = path, .fd = -1};
    struct stat about;
    int fd = open_root(&walk, &about, true);
    wire_entry("", &about, "");
    if (S_ISREG(about.st_mode)) {
        pack_contents(&walk, ITSELF, fd);
        return;
    }
    walk_enter(&walk, fd, "", NO_MODE);
    walk_read_names(&walk);
    while (walk.depth > 0) {
        const char *name = walk_next(&walk);
        if (name != NULL) {
            pack_child(&walk, name);
            continue;
        }
        walk_leave(&walk);
        wire_mark(RECORD_UP);
    }
}
