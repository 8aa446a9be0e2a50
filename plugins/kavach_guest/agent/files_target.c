#include "files_target.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "files_wire.h"

enum {
    NEW_FILE_MODE = 0644,
    NEW_PARENT_MODE = 0755,
    ORDINARY_BITS = 0777,
    CREATE_FLAGS = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC,
};

/* The hidden file that a failure has to remove. */
static const struct target *unfinished;

static void remove_hidden(void) {
    if (unfinished != NULL)
        (void)unlinkat(unfinished->place.directory, unfinished->hidden, 0);
    unfinished = NULL;
}

static _Noreturn void fail(const struct target *target, uint32_t reason) {
    walk_fail(target->walk, target->walk->depth > 0 ? target->place.name : "", reason);
}

static void split(const char *path, char parent[PATH_MAX], char name[NAME_MAX + 1]) {
    const char *slash = strrchr(path, '/');
    const char *last = slash == NULL ? path : slash + 1;
    size_t parent_length = slash == NULL ? 0 : (size_t)(slash + 1 - path);
    if (strlen(last) > NAME_MAX || parent_length >= PATH_MAX)
        wire_fail(ENAMETOOLONG, path);
    if (*last == 0 || strcmp(last, ".") == 0 || strcmp(last, "..") == 0)
        wire_fail(EISDIR, path);
    memcpy(parent, path, parent_length);
    parent[parent_length] = 0;
    strcpy(name, last);
}

void place_open(struct place *place, const char *path) {
    char parent[PATH_MAX];
    split(path, parent, place->name);
    place->directory = open(*parent == 0 ? "." : parent, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (place->directory < 0)
        wire_fail((uint32_t)errno, path);
}

static bool is_directory(const char *path) {
    struct stat about;
    return stat(path, &about) == 0 && S_ISDIR(about.st_mode);
}

void make_parents(const char *path) {
    char part[PATH_MAX];
    if (strlen(path) >= sizeof part)
        wire_fail(ENAMETOOLONG, path);
    strcpy(part, path);
    for (char *slash = part; (slash = strchr(slash + 1, '/')) != NULL; *slash = '/') {
        *slash = 0;
        if (mkdir(part, NEW_PARENT_MODE) == 0)
            continue;
        int error = errno;
        if (!is_directory(part))
            wire_fail(error == EEXIST ? ENOTDIR : (uint32_t)error, part);
    }
}

void hidden_name(char name[HIDDEN_NAME_SIZE]) {
    unsigned long long number;
    if (getrandom(&number, sizeof number, 0) != sizeof number)
        wire_fail(EIO, "");
    snprintf(name, HIDDEN_NAME_SIZE, ".kavach-%016llx", number);
}

/* 0 or why there can be no hidden file. */
static int open_hidden(struct target *target, mode_t mode) {
    hidden_name(target->hidden);
    target->fd = openat(target->place.directory, target->hidden, CREATE_FLAGS, mode);
    if (target->fd < 0) {
        target->hidden[0] = 0;
        return errno;
    }
    unfinished = target;
    wire_on_failure(remove_hidden);
    return 0;
}

/* Opens the old file itself, or what a link leads to. */
static void open_in_place(struct target *target, mode_t mode, bool append) {
    const struct place *place = &target->place;
    struct stat about;
    bool exists = fstatat(place->directory, place->name, &about, 0) == 0;
    if (exists && S_ISDIR(about.st_mode))
        fail(target, EISDIR);
    if (exists && !S_ISREG(about.st_mode))
        fail(target, REASON_NOT_REGULAR);
    int flags = O_WRONLY | O_CREAT | O_NONBLOCK | O_NOCTTY | O_CLOEXEC | (append ? O_APPEND : 0);
    mode_t new_mode = mode == MODE_AS_IT_IS ? NEW_FILE_MODE : mode;
    target->fd = openat(place->directory, place->name, flags, new_mode);
    if (target->fd < 0 || fstat(target->fd, &about) != 0)
        fail(target, (uint32_t)errno);
    if (!S_ISREG(about.st_mode)) /* it has been exchanged meanwhile */
        fail(target, REASON_NOT_REGULAR);
    if (!append && ftruncate(target->fd, 0) != 0)
        fail(target, (uint32_t)errno);
    if (mode != MODE_AS_IT_IS && fchmod(target->fd, mode) != 0)
        fail(target, (uint32_t)errno);
}

/* Replacing it would change nothing but its contents: no link, no owner, no right to write. */
static bool is_replaceable(const struct place *place, const struct stat *about) {
    return S_ISREG(about->st_mode) && about->st_nlink == 1 && about->st_uid == geteuid() &&
           faccessat(place->directory, place->name, W_OK, 0) == 0;
}

void target_open(struct target *target, const struct walk *walk, mode_t mode, bool append) {
    struct stat about;
    *target = (struct target){.walk = walk, .fd = -1};
    place_open(&target->place, walk->root);
    const struct place *place = &target->place;
    bool exists = fstatat(place->directory, place->name, &about, AT_SYMLINK_NOFOLLOW) == 0;
    if (append || (exists && !is_replaceable(place, &about))) {
        open_in_place(target, mode, append);
        return;
    }
    mode_t old_mode = exists ? about.st_mode & ORDINARY_BITS : NEW_FILE_MODE;
    int error = open_hidden(target, mode == MODE_AS_IT_IS ? old_mode : mode);
    if (error != 0 && exists) /* the file may be written to, and its directory not */
        open_in_place(target, mode, append);
    else if (error != 0)
        fail(target, (uint32_t)error);
}

void target_open_in(struct target *target, const struct walk *walk, const char *name, mode_t mode,
                    bool is_new) {
    *target = (struct target){.walk = walk, .place.directory = walk->fd, .fd = -1};
    strcpy(target->place.name, name);
    int error = 0;
    if (!is_new) {
        error = open_hidden(target, mode);
    } else {
        target->fd = openat(walk->fd, name, CREATE_FLAGS, mode);
        error = target->fd < 0 ? errno : 0;
    }
    if (error != 0)
        fail(target, (uint32_t)error);
}

static void write_all(const struct target *target, const unsigned char *data, size_t size) {
    while (size > 0) {
        ssize_t n = write(target->fd, data, size);
        if (n < 0 && errno != EINTR)
            fail(target, (uint32_t)errno);
        if (n > 0) {
            data += n;
            size -= (size_t)n;
        }
    }
}

int target_receive(struct target *target) {
    struct record record;
    for (;;) {
        wire_next(&record);
        if (record.type != RECORD_DATA)
            return record.type;
        for (uint32_t left = record.length; left > 0;) {
            const unsigned char *data;
            size_t size = wire_read_data(left, &data);
            write_all(target, data, size);
            left -= (uint32_t)size;
        }
    }
}

void target_commit(struct target *target) {
    const struct place *place = &target->place;
    if (close(target->fd) != 0)
        fail(target, (uint32_t)errno);
    if (target->hidden[0] != 0 &&
        renameat(place->directory, target->hidden, place->directory, place->name) != 0)
        fail(target, (uint32_t)errno);
    unfinished = NULL;
}
