#include "files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "files_target.h"
#include "files_tree.h"
#include "files_walk.h"
#include "files_wire.h"

enum { EXIT_MISUSED = 2, FIRST_ARGUMENT = 3 };

/* ---- the operations; `a` are the arguments after the operation's name ---- */

static uint64_t number(const char *text) {
    char *end;
    errno = 0;
    uint64_t value = strtoull(text, &end, 10);
    if (*text < '0' || *text > '9' || *end != 0 || errno != 0)
        _exit(EXIT_MISUSED);
    return value;
}

static bool flag(const char *text) {
    uint64_t value = number(text);
    if (value > 1)
        _exit(EXIT_MISUSED);
    return value == 1;
}

/* "as it is" is written as a number that is no mode. */
static mode_t mode(const char *text) {
    uint64_t value = number(text);
    return value > 0777 ? MODE_AS_IT_IS : (mode_t)value;
}

static _Noreturn void fail(const char *path) {
    wire_fail((uint32_t)errno, path);
}

/* Sends what is known of a name. A link that may not be read (those of /proc) has no target. */
static bool send_entry(int directory, const char *name, const char *sent_name, int flags) {
    struct stat about;
    char target[PATH_MAX];
    ssize_t length = 0;
    if (fstatat(directory, name, &about, flags) != 0)
        return false;
    if (S_ISLNK(about.st_mode))
        length = readlinkat(directory, name, target, sizeof target - 1);
    target[length < 0 ? 0 : length] = 0;
    wire_entry(sent_name, &about, target);
    return true;
}

/* FOLLOW PATH */
static void op_stat(char **a) {
    if (!send_entry(AT_FDCWD, a[1], "", flag(a[0]) ? 0 : AT_SYMLINK_NOFOLLOW))
        fail(a[1]);
}

/* LIMIT PATH */
static void op_list(char **a) {
    uint64_t limit = number(a[0]), count = 0;
    DIR *directory = opendir(a[1]);
    if (directory == NULL)
        fail(a[1]);
    struct dirent *entry;
    while (errno = 0, (entry = readdir(directory)) != NULL) {
        const char *name = entry->d_name;
        if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
            continue;
        if (count++ == limit)
            wire_fail(REASON_TOO_MANY, a[1]);
        if (!send_entry(dirfd(directory), name, name, AT_SYMLINK_NOFOLLOW) && errno != ENOENT)
            fail(a[1]);
    }
    if (errno != 0)
        fail(a[1]);
    closedir(directory);
}

/* OFFSET LIMIT CUT PATH */
static void op_read(char **a) {
    file_send(a[3], number(a[0]), number(a[1]), flag(a[2]));
}

/* MODE APPEND PARENTS PATH */
static void op_write(char **a) {
    const struct walk walk = {.root = a[3], .fd = -1};
    struct target target;
    wire_wait();
    if (flag(a[2]))
        make_parents(a[3]);
    target_open(&target, &walk, mode(a[0]), flag(a[1]));
    if (target_receive(&target) != RECORD_DONE)
        wire_fail(EPROTO, "");
    target_commit(&target);
}

/* MODE PARENTS EXIST_OK PATH */
static void op_mkdir(char **a) {
    struct stat about;
    if (flag(a[1]))
        make_parents(a[3]);
    if (mkdir(a[3], mode(a[0])) == 0)
        return;
    int error = errno;
    if (!flag(a[2]) || stat(a[3], &about) != 0 || !S_ISDIR(about.st_mode))
        wire_fail((uint32_t)error, a[3]);
}

/* RECURSIVE PATH */
static void op_remove(char **a) {
    struct stat about;
    const char *path = a[1];
    if (lstat(path, &about) != 0)
        fail(path);
    if (S_ISDIR(about.st_mode) && flag(a[0])) {
        tree_remove(AT_FDCWD, path, path, false);
        return;
    }
    if (unlinkat(AT_FDCWD, path, S_ISDIR(about.st_mode) ? AT_REMOVEDIR : 0) != 0)
        fail(path);
}

/* SOURCE TARGET */
static void op_rename(char **a) {
    if (rename(a[0], a[1]) != 0)
        fail(a[0]);
}

/* PATH */
static void op_pack(char **a) {
    tree_pack(a[0]);
}

/* PARENTS PATH */
static void op_unpack(char **a) {
    wire_wait();
    if (flag(a[0]))
        make_parents(a[1]);
    tree_unpack(a[1]);
}

/* ---- the start ---- */

static const struct operation {
    const char *name;
    int arguments;
    void (*run)(char **arguments);
} operations[] = {
    {"stat", 2, op_stat},   {"list", 2, op_list},     {"read", 4, op_read},
    {"write", 4, op_write}, {"mkdir", 4, op_mkdir},   {"remove", 2, op_remove},
    {"rename", 2, op_rename}, {"pack", 1, op_pack}, {"unpack", 2, op_unpack},
};

static const struct operation *find(const char *name, int arguments) {
    for (size_t i = 0; i < sizeof operations / sizeof *operations; i++)
        if (strcmp(operations[i].name, name) == 0 && operations[i].arguments == arguments)
            return &operations[i];
    return NULL;
}

/* Another process of the same user could trace this one, or open its pipes by /proc (gVisor guards
   those by file permissions only) and put in a word of its own. */
static void hide(void) {
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    for (int fd = STDIN_FILENO; fd <= STDOUT_FILENO; fd++) {
        struct stat about;
        if (fstat(fd, &about) == 0 && S_ISFIFO(about.st_mode))
            (void)fchmod(fd, 0);
    }
}

int files_main(int argc, char **argv) {
    hide();
    signal(SIGXFSZ, SIG_IGN); /* a file that may not grow further is an error to tell: EFBIG */
    umask(0);
    const struct operation *operation =
        argc < FIRST_ARGUMENT ? NULL : find(argv[2], argc - FIRST_ARGUMENT);
    if (operation == NULL)
        return EXIT_MISUSED;
    operation->run(argv + FIRST_ARGUMENT);
    wire_done();
    return 0;
}
