/* What /proc says of one process. Names in it are the process's own choice. */
#ifndef KAVACH_PROCFS_H
#define KAVACH_PROCFS_H

#include <dirent.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum {
    NO_SLOT = -1, /* no group of it is a marker */
    NAME_MAX_BYTES = 64,
};

/* What /proc/<pid>/status says. */
struct process {
    pid_t pid;
    pid_t parent;
    uid_t uid;
    uint32_t threads;
    int slot;
    char state;
    bool alive; /* no zombie */
};

/* What /proc/<pid>/stat says. */
struct consumption {
    uint64_t own_us; /* CPU time of its threads, those that have ended included */
    uint64_t children_us; /* and of its children that it has waited for */
    uint64_t rss_bytes;
    size_t name_length;
    char name[NAME_MAX_BYTES];
};

/* Opens /proc. NULL, or what is missing. */
const char *procfs_prepare(void);

/* Another stream over /proc, or NULL. */
DIR *procfs_list(void);

/* The next process of a stream that is not the agent; 0 at its end. */
pid_t procfs_next(DIR *list);

/* False when there is no such process any more. */
bool procfs_read_process(pid_t pid, struct process *process);
bool procfs_read_consumption(pid_t pid, struct consumption *consumption);

#endif
