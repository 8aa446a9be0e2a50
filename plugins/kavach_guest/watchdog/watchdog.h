/* kavach-watchdog: what its parts give each other. */
#ifndef KAVACH_WATCHDOG_H
#define KAVACH_WATCHDOG_H

#include <stdbool.h>
#include <sys/types.h>

/* The kernel's numbers, for libcs older than the calls; the same on every machine that we build for. */
enum { PIDFD_SEND_SIGNAL = 424, PIDFD_OPEN = 434, CLOSE_RANGE = 436, OPENAT2 = 437 };

enum { ANSWER_MS = 5000 };

/* processes.c */
int open_process(pid_t pid);
void kill_process(int handle);
bool wait_for_end(int handle, int milliseconds);

/* runtimes.c: see that no runtime of the instance goes on, or starts any more. */
void end_runtimes(int instance);

/* groups.c: one round of killing and removing; true when the group is gone from every hierarchy. */
bool end_groups(const char *group, char *const *roots);

/* files.c: remove a directory of the instance; never through a link, never into another file system. */
bool remove_directory(int parent, const char *name);

#endif
