/* The cgroups of an instance: kill who is in them, and remove them, in every hierarchy. */
#include "watchdog.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { DEEPEST = 8 };

/* Written where it is there: each is a file of one version of cgroups, or of one hierarchy. */
static void write_if_there(int group, const char *file, const char *value) {
    int target = openat(group, file, O_WRONLY | O_NOFOLLOW | O_CLOEXEC);
    if (target < 0)
        return;
    ssize_t written = write(target, value, strlen(value));
    (void)written; /* what is still there in the next round tells */
    close(target);
}

/* Is the process in our group, or below it, in some hierarchy? */
static bool is_member(int pid, const char *group) {
    char path[64], line[4096];
    snprintf(path, sizeof path, "/proc/%d/cgroup", pid);
    FILE *file = fopen(path, "re");
    bool found = false;
    size_t length = strlen(group);
    while (file != NULL && !found && fgets(line, sizeof line, file) != NULL) {
        for (const char *at = line; !found && (at = strstr(at, group)) != NULL; at += length)
            found = at > line && at[-1] == '/' && at[length] != 0 && strchr("/\n", at[length]) != NULL;
    }
    if (file != NULL)
        fclose(file);
    return found;
}

static void kill_members(int directory, const char *group) {
    int procs = openat(directory, "cgroup.procs", O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    FILE *list = procs < 0 ? NULL : fdopen(procs, "r");
    if (list == NULL)
        return;
    for (int pid; fscanf(list, "%d", &pid) == 1;) {
        int handle = pid > 1 ? open_process(pid) : -1; /* 0 is a process of another pid namespace */
        if (handle < 0)
            continue;
        if (is_member(pid, group))
            kill_process(handle);
        close(handle);
    }
    fclose(list);
}

static bool end_group(int parent, const char *name, const char *group, int depth);

static void end_children(int directory, const char *group, int depth) {
    int copy = openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *list = copy < 0 ? NULL : fdopendir(copy);
    if (list == NULL)
        return;
    for (struct dirent *entry; (entry = readdir(list)) != NULL;)
        if (entry->d_type == DT_DIR && entry->d_name[0] != '.')
            end_group(directory, entry->d_name, group, depth + 1);
    closedir(list);
}

static bool end_group(int parent, const char *name, const char *group, int depth) {
    int directory = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (directory < 0)
        return errno == ENOENT;
    write_if_there(directory, "cgroup.kill", "1");
    kill_members(directory, group);
    if (depth < DEEPEST)
        end_children(directory, group, depth);
    /* Only now: who is frozen takes the signal when he thaws, and runs nothing before it. */
    write_if_there(directory, "freezer.state", "THAWED");
    close(directory);
    return unlinkat(parent, name, AT_REMOVEDIR) == 0 || errno == ENOENT;
}

bool end_groups(const char *group, char *const *roots) {
    bool gone = true;
    for (; *roots != NULL; roots++) {
        int root = open(*roots, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (root < 0)
            continue;
        gone = end_group(root, group, group, 0) && gone;
        close(root);
    }
    return gone;
}
