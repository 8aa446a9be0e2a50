#include "files_walk.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "files_wire.h"

enum { NAMES_AT_FIRST = 4096 };

struct level {
    struct level *above;
    dev_t device;
    ino_t inode;
    mode_t mode;
    char *names; /* each ends with a NUL */
    size_t size, next;
    char name[NAME_MAX + 1];
};

/* Writes the path of `name` so that it ends at `end`; returns where it begins, cut at `start`. */
static char *prepend(char *start, char *end, const char *name) {
    size_t length = strlen(name);
    if ((size_t)(end - start) < length + 1)
        return start;
    end -= length;
    memcpy(end, name, length);
    *--end = '/';
    return end;
}

_Noreturn void walk_fail(const struct walk *walk, const char *name, uint32_t reason) {
    char path[PATH_MAX];
    char *begin = path + sizeof path - 1;
    *begin = 0;
    if (*name != 0)
        begin = prepend(path, begin, name);
    for (const struct level *level = walk->top; level != NULL && level->above != NULL;
         level = level->above)
        begin = prepend(path, begin, level->name);
    char whole[2 * PATH_MAX];
    size_t root_length = strnlen(walk->root, PATH_MAX - 1);
    memcpy(whole, walk->root, root_length);
    strcpy(whole + root_length, begin);
    wire_fail(reason, whole);
}

_Noreturn void walk_fail_errno(const struct walk *walk, const char *name) {
    walk_fail(walk, name, (uint32_t)errno);
}

/* Not by O_DIRECTORY, with which gVisor follows links in spite of O_NOFOLLOW. So it may be something
   else that is opened: looked at before, and without waiting. */
int directory_open(int parent, const char *name) {
    struct stat about;
    if (fstatat(parent, name, &about, AT_SYMLINK_NOFOLLOW) != 0)
        return -1;
    errno = ENOTDIR;
    if (!S_ISDIR(about.st_mode))
        return -1;
    int fd = openat(parent, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd < 0 || (fstat(fd, &about) == 0 && S_ISDIR(about.st_mode)))
        return fd;
    close(fd);
    errno = ENOTDIR;
    return -1;
}

void walk_enter(struct walk *walk, int fd, const char *name, mode_t mode) {
    struct stat about;
    struct level *level = calloc(1, sizeof *level);
    if (level == NULL || fstat(fd, &about) != 0)
        walk_fail_errno(walk, name);
    level->above = walk->top;
    level->device = about.st_dev;
    level->inode = about.st_ino;
    level->mode = mode;
    strncpy(level->name, name, NAME_MAX);
    if (walk->top != NULL)
        close(walk->fd);
    walk->fd = fd;
    walk->top = level;
    walk->depth++;
}

static bool keep_name(struct level *level, size_t *room, const char *name) {
    size_t length = strlen(name) + 1;
    if (level->size + length > *room) {
        *room = *room == 0 ? NAMES_AT_FIRST : *room * 2;
        char *larger = realloc(level->names, *room);
        if (larger == NULL)
            return false;
        level->names = larger;
    }
    memcpy(level->names + level->size, name, length);
    level->size += length;
    return true;
}

/* All names at once: the place in the stream is lost with its descriptor when the walk goes on. */
void walk_read_names(struct walk *walk) {
    int copy = fcntl(walk->fd, F_DUPFD_CLOEXEC, 0);
    DIR *directory = copy < 0 ? NULL : fdopendir(copy);
    if (directory == NULL)
        walk_fail_errno(walk, "");
    size_t room = 0;
    struct dirent *entry;
    while (errno = 0, (entry = readdir(directory)) != NULL) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        if (!keep_name(walk->top, &room, entry->d_name))
            walk_fail(walk, "", ENOMEM);
    }
    if (errno != 0)
        walk_fail_errno(walk, "");
    closedir(directory);
}

const char *walk_next(struct walk *walk) {
    struct level *level = walk->top;
    if (level->next == level->size)
        return NULL;
    const char *name = level->names + level->next;
    level->next += strlen(name) + 1;
    return name;
}

/* By "..", which somebody may have changed by moving the directory: then it is not the one it was. */
static int open_above(const struct walk *walk) {
    const struct level *above = walk->top->above;
    struct stat about;
    int fd = openat(walk->fd, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &about) != 0)
        walk_fail_errno(walk, "");
    if (about.st_dev != above->device || about.st_ino != above->inode)
        walk_fail(walk, "", ESTALE);
    return fd;
}

const char *walk_leave(struct walk *walk) {
    static char name[NAME_MAX + 1];
    struct level *level = walk->top;
    int above = level->above == NULL ? -1 : open_above(walk);
    if (level->mode != NO_MODE && fchmod(walk->fd, level->mode) != 0)
        walk_fail_errno(walk, "");
    memcpy(name, level->name, sizeof name);
    close(walk->fd);
    walk->fd = above;
    walk->top = level->above;
    walk->depth--;
    free(level->names);
    free(level);
    return name;
}

/* Gives the owner back the rights to a directory that may not even be opened. By a descriptor that
   followed no link; chmod takes it by its name in /proc. */
static void make_accessible(int parent, const char *name) {
    char path[32];
    struct stat about;
    int fd = openat(parent, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (fstat(fd, &about) == 0 && S_ISDIR(about.st_mode))
        (void)chmod(path, 0700);
    close(fd);
}

static int open_to_remove(int parent, const char *name, bool force) {
    if (force)
        make_accessible(parent, name);
    return directory_open(parent, name);
}

/* True if `name` was a directory, and the walk has gone into it. */
static bool unlink_or_enter(struct walk *walk, const char *name, bool force) {
    if (unlinkat(walk->fd, name, 0) == 0 || errno == ENOENT)
        return false;
    int refusal = errno;
    int fd = open_to_remove(walk->fd, name, force);
    if (fd < 0)
        walk_fail(walk, name, (uint32_t)(errno == ENOTDIR || errno == ELOOP ? refusal : errno));
    walk_enter(walk, fd, name, NO_MODE);
    walk_read_names(walk);
    return true;
}

void tree_remove(int directory, const char *name, const char *path, bool force) {
    struct walk walk = {.root = path, .fd = -1};
    int fd = open_to_remove(directory, name, force);
    if (fd < 0)
        walk_fail_errno(&walk, "");
    walk_enter(&walk, fd, "", NO_MODE);
    walk_read_names(&walk);
    while (walk.depth > 0) {
        const char *next = walk_next(&walk);
        if (next != NULL) {
            unlink_or_enter(&walk, next, force);
            continue;
        }
        const char *left = walk_leave(&walk);
        if (walk.depth > 0 && unlinkat(walk.fd, left, AT_REMOVEDIR) != 0 && errno != ENOENT)
            walk_fail_errno(&walk, left);
    }
    if (unlinkat(directory, name, AT_REMOVEDIR) != 0)
        walk_fail_errno(&walk, "");
}
