/* kavach-watchdog BASE INSTANCE FRESH GROUP OWNER ROOT...

   Waits until OWNER, its parent, has ended, and removes what that has left: whatever runs in the cgroup GROUP of the
   hierarchies mounted at each ROOT, these cgroups, and the directory BASE/INSTANCE, or BASE/FRESH as it was called while
   it was made. Standard input is a pipe whose other end only the owner has: it ends when the owner has become another program, too.

   An owner that has cleaned up by itself closes the pipe, and there is nothing left to do. */
#include "watchdog.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { ARGUMENTS_BEFORE_ROOTS = 6, SWEEP_SECONDS = 10, NAP_NS = 500 * 1000 };

struct watch {
    const char *base;
    const char *instance;
    const char *fresh;
    const char *group;
    char *const *roots;
};

static void detach(void) {
    static const int ignored[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGPIPE, SIGUSR1, SIGUSR2, SIGALRM};
    for (unsigned i = 0; i < sizeof ignored / sizeof *ignored; i++)
        signal(ignored[i], SIG_IGN);
    setsid();
    syscall(CLOSE_RANGE, 1, UINT_MAX, 0);
    if (chdir("/") != 0)
        _exit(1);
}

/* The owner's handle; -1 when it has ended already. */
static int open_owner(pid_t owner) {
    int handle = open_process(owner);
    if (handle >= 0 && getppid() != owner) { /* the number is another's by now */
        close(handle);
        return -1;
    }
    return handle;
}

/* The lock of the instance, which its owner holds for as long as it has boxes; -1 when it is held. */
static int take_lock(int instance) {
    int lock = openat(instance, "owner", O_RDWR | O_NOFOLLOW | O_CLOEXEC);
    if (lock >= 0 && flock(lock, LOCK_EX | LOCK_NB) != 0) {
        close(lock);
        return -1;
    }
    return lock;
}

static int open_instance(const struct watch *watch) {
    int base = open(watch->base, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (base < 0)
        return -1;
    int instance = openat(base, watch->instance, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    close(base);
    return instance;
}

/* Wait until the owner has ended or let go of its instance. A program that it started may hold its lock, so its end is enough. */
static void wait_for_owner(const struct watch *watch, pid_t pid) {
    int owner = open_owner(pid);
    if (owner < 0)
        return;
    struct pollfd ends[] = {{.fd = owner, .events = POLLIN}, {.fd = STDIN_FILENO, .events = POLLIN}};
    while (poll(ends, 2, -1) < 0 && errno == EINTR)
        ;
    if (ends[0].revents == 0) {
        int instance = open_instance(watch);
        int lock = instance < 0 ? 0 : take_lock(instance); /* kept: nobody else is to sweep meanwhile */
        while (lock < 0 && !wait_for_end(owner, -1))
            ;
        if (instance >= 0)
            close(instance);
    }
    close(owner);
}

static bool is_over(const struct timespec *end) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec > end->tv_sec;
}

static bool end_boxes(const struct watch *watch, int instance) {
    struct timespec end, nap = {.tv_nsec = NAP_NS};
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += SWEEP_SECONDS;
    if (instance >= 0)
        end_runtimes(instance);
    while (!end_groups(watch->group, watch->roots)) {
        if (is_over(&end))
            return false;
        nanosleep(&nap, NULL);
        if (nap.tv_nsec < 16 * NAP_NS)
            nap.tv_nsec *= 2;
    }
    return true;
}

/* The ledger and the lock go last: who looks after a half-done removal must still find out whose it was. */
static bool remove_files(const struct watch *watch, int instance) {
    if (instance >= 0 && (!remove_directory(instance, "bundles") || !remove_directory(instance, "state")))
        return false;
    int base = open(watch->base, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (base < 0)
        return errno == ENOENT;
    bool fresh_gone = remove_directory(base, watch->fresh);
    return remove_directory(base, watch->instance) && fresh_gone;
}

int main(int argc, char **argv) {
    if (argc < ARGUMENTS_BEFORE_ROOTS)
        return 2;
    struct watch watch = {argv[1], argv[2], argv[3], argv[4], argv + ARGUMENTS_BEFORE_ROOTS};
    detach();
    wait_for_owner(&watch, (pid_t)atoi(argv[5]));
    int instance = open_instance(&watch);
    if (instance >= 0)
        take_lock(instance); /* who has it sweeps as we do, or is a child of the owner's and has no right to it */
    return end_boxes(&watch, instance) && remove_files(&watch, instance) ? 0 : 1;
}
