/* The files of an instance. */
#include "watchdog.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { DEEPEST = 32 };
#define NO_OTHER_FILE_SYSTEM UINT64_C(0x01)
#define NO_MAGIC_LINKS UINT64_C(0x02)
#define NO_LINKS UINT64_C(0x04)
#define BENEATH UINT64_C(0x08)

struct how {
    uint64_t flags;
    uint64_t mode;
    uint64_t resolve;
};

static int open_directory(int parent, const char *name) {
    struct how how = {
        .flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC,
        .resolve = NO_OTHER_FILE_SYSTEM | NO_MAGIC_LINKS | NO_LINKS | BENEATH,
    };
    return (int)syscall(OPENAT2, parent, name, &how, sizeof how);
}

static bool is_self(const char *name) {
    return name[0] == '.' && (name[1] == 0 || (name[1] == '.' && name[2] == 0));
}

static bool remove_entry(int parent, const char *name, int depth);

static void empty(int directory, int depth) {
    int copy = openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *list = copy < 0 ? NULL : fdopendir(copy);
    if (list == NULL)
        return;
    for (struct dirent *entry; (entry = readdir(list)) != NULL;)
        if (!is_self(entry->d_name))
            remove_entry(directory, entry->d_name, depth);
    closedir(list);
}

static bool remove_entry(int parent, const char *name, int depth) {
    if (unlinkat(parent, name, 0) == 0 || errno == ENOENT)
        return true;
    int directory = depth < DEEPEST ? open_directory(parent, name) : -1;
    if (directory < 0)
        return false;
    empty(directory, depth + 1);
    close(directory);
    return unlinkat(parent, name, AT_REMOVEDIR) == 0 || errno == ENOENT;
}

bool remove_directory(int parent, const char *name) {
    return remove_entry(parent, name, 0);
}
