#include "tree.h"

#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <sys/wait.h>
#include <unistd.h>

#include "identity.h"

enum {
    PLAIN_END_ROUNDS = 1000,
    PLAIN_END_PAUSE_MS = 2,
};

static DIR *lists[WALKS];
static pid_t self;
static tree_slot_of_pid *slot_of_pid;

const char *tree_prepare(tree_slot_of_pid *lookup) {
    self = getpid();
    slot_of_pid = lookup;
    const char *problem = procfs_prepare();
    for (int walk = 0; walk < WALKS && problem == NULL; walk++)
        if ((lists[walk] = procfs_list()) == NULL)
            problem = "cannot list /proc";
    return problem;
}

/* The plain mode: follows the parents up to a child of the agent. True for a descendant. */
static bool attribute_by_descent(struct process *process) {
    struct process ancestor = *process;
    while (ancestor.parent != self)
        if (ancestor.parent <= 1 || !procfs_read_process(ancestor.parent, &ancestor))
            return false;
    process->slot = slot_of_pid(ancestor.pid);
    /* An orphan has become the agent's own child; its session may still tell where it is from. */
    if (process->slot == TREE_NOBODY)
        process->slot = slot_of_pid(getsid(process->pid));
    return true;
}

static bool inspect(pid_t pid, struct process *process) {
    return procfs_read_process(pid, process) && (!identity_is_plain() || attribute_by_descent(process));
}

void tree_walk_begin(enum tree_walk walk) {
    rewinddir(lists[walk]);
}

bool tree_walk_step(enum tree_walk walk, unsigned budget, tree_visitor *visit) {
    bool dead_too = walk == WALK_LIST || walk == WALK_CPU;
    while (budget-- > 0) {
        pid_t pid = procfs_next(lists[walk]);
        if (pid == 0)
            return true;
        struct process process;
        if (inspect(pid, &process) && (process.alive || dead_too))
            visit(&process);
    }
    return false;
}

void tree_walk_at_once(tree_visitor *visit) {
    tree_walk_begin(WALK_AT_ONCE);
    while (!tree_walk_step(WALK_AT_ONCE, UINT32_MAX, visit))
        ;
}

bool tree_is_crowded(unsigned limit) {
    unsigned count = 0;
    rewinddir(lists[WALK_AT_ONCE]);
    while (count <= limit && procfs_next(lists[WALK_AT_ONCE]) != 0)
        count++;
    return count > limit;
}

int tree_slot_of(pid_t pid) {
    struct process process;
    return inspect(pid, &process) ? process.slot : TREE_NOBODY;
}

static void kill_visited(const struct process *process) {
    kill(process->pid, SIGKILL);
}

static void kill_descendants(void) {
    for (int round = 0; round < PLAIN_END_ROUNDS; round++) {
        pid_t reaped;
        do
            reaped = waitpid(-1, NULL, WNOHANG);
        while (reaped > 0);
        /* A subreaper without a child has no descendant either. */
        if (reaped < 0 && errno == ECHILD)
            return;
        tree_walk_at_once(kill_visited);
        poll(NULL, 0, PLAIN_END_PAUSE_MS);
    }
}

void tree_kill_everything(void) {
    if (identity_is_plain())
        kill_descendants();
    else
        kill(-1, SIGKILL); /* the kernel ends whatever is left when process 1 exits */
}
