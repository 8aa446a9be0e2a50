/* The runtimes of an instance: what `kavach-seal` has noted of them in bundles/ID/runtime, a link that leads nowhere.

   Its text is "PID START". Who makes the link first has won: when we do, the seal that comes later finds it, and starts nothing. */
#include "watchdog.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { START_AFTER_NAME = 20 };

/* The process's start, field 22 of proc(5)'s stat; 0 when there is none. The name before it may hold anything. */
static unsigned long long start_of(int pid) {
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t length = file < 0 ? -1 : read(file, text, sizeof text - 1);
    if (file >= 0)
        close(file);
    if (length <= 0)
        return 0;
    text[length] = 0;
    char *field = strrchr(text, ')');
    for (int i = 0; field != NULL && i < START_AFTER_NAME; i++)
        field = strchr(field + 1, ' ');
    unsigned long long start = 0;
    return field != NULL && sscanf(field, " %llu", &start) == 1 ? start : 0;
}

static void end_runtime(int bundle) {
    char text[64];
    if (symlinkat("none", bundle, "runtime") == 0)
        return;
    ssize_t length = readlinkat(bundle, "runtime", text, sizeof text - 1);
    int pid;
    unsigned long long start;
    if (length <= 0)
        return;
    text[length] = 0;
    if (sscanf(text, "%d %llu", &pid, &start) != 2 || pid <= 1)
        return;
    int handle = open_process(pid);
    if (handle < 0)
        return;
    if (start_of(pid) == start) {
        kill_process(handle);
        wait_for_end(handle, ANSWER_MS);
    }
    close(handle);
}

void end_runtimes(int instance) {
    int bundles = openat(instance, "bundles", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *list = bundles < 0 ? NULL : fdopendir(bundles);
    if (list == NULL)
        return;
    for (struct dirent *entry; (entry = readdir(list)) != NULL;) {
        int bundle = entry->d_name[0] == '.'
                         ? -1
                         : openat(dirfd(list), entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (bundle < 0)
            continue;
        end_runtime(bundle);
        close(bundle);
    }
    closedir(list);
}
