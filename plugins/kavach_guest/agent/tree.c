#include "tree.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "identity.h"
#include "proto.h"

enum {
    STATUS_SIZE = 4096, /* about 1.4 KB, and at most 700 bytes more for 65 groups */
    PATH_SIZE = 32,
    PLAIN_END_ROUNDS = 1000,
    PLAIN_END_PAUSE_MS = 2,
};

/* What one /proc/<pid>/status says. */
struct status {
    bool alive;
    bool stopped;
    pid_t parent;
    int slot;
};

static int proc = -1;
static DIR *listing;
static pid_t self;
static tree_slot_of_pid *slot_of_pid;

const char *tree_prepare(tree_slot_of_pid *lookup) {
    self = getpid();
    slot_of_pid = lookup;
    proc = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (proc < 0)
        return "cannot open /proc";
    listing = fdopendir(proc);
    return listing == NULL ? "cannot list /proc" : NULL;
}

static pid_t parse_number(const char *text) {
    pid_t number = 0;
    for (int digits = 0; *text >= '0' && *text <= '9' && digits < 9; text++, digits++)
        number = number * 10 + (*text - '0');
    return number;
}

static int marker_slot(const char *groups) {
    for (;;) {
        groups += strspn(groups, " \t");
        if (*groups < '0' || *groups > '9')
            return TREE_NOBODY;
        uint64_t group = 0;
        for (; *groups >= '0' && *groups <= '9'; groups++)
            group = group * 10 + (uint64_t)(*groups - '0');
        if (group >= MARKER_FIRST && group < MARKER_FIRST + SLOTS)
            return (int)(group - MARKER_FIRST);
    }
}

static const char *value_of(const char *line, const char *key) {
    size_t length = strlen(key);
    return strncmp(line, key, length) == 0 ? line + length + strspn(line + length, " \t") : NULL;
}

/* The last line with a key counts: not every kernel (gVisor) escapes a newline in the process's
   name, which it chooses itself and which comes first. */
static void parse_status(const char *text, struct status *status) {
    char state = '?';
    int threads = 1;
    *status = (struct status){.slot = TREE_NOBODY};
    for (const char *line = text; line != NULL && *line != 0;) {
        const char *value;
        if ((value = value_of(line, "State:")) != NULL)
            state = *value;
        else if ((value = value_of(line, "PPid:")) != NULL)
            status->parent = parse_number(value);
        else if ((value = value_of(line, "Groups:")) != NULL)
            status->slot = marker_slot(value);
        else if ((value = value_of(line, "Threads:")) != NULL)
            threads = parse_number(value);
        line = strchr(line, '\n');
        line = line == NULL ? NULL : line + 1;
    }
    /* A process whose first thread has ended looks like a zombie while its other threads run on. */
    status->stopped = state == 'T';
    status->alive = (state != 'Z' && state != 'X') || threads > 1;
}

static bool read_status(pid_t pid, struct status *status) {
    static char text[STATUS_SIZE];
    char path[PATH_SIZE] = {0};
    char *p = path + sizeof path - sizeof "/status";
    memcpy(p, "/status", sizeof "/status");
    for (; pid > 0; pid /= 10)
        *--p = (char)('0' + pid % 10);
    int file = openat(proc, p, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return false;
    ssize_t n = read(file, text, sizeof text - 1);
    close(file);
    if (n <= 0)
        return false;
    text[n] = 0;
    parse_status(text, status);
    return true;
}

/* The plain mode: follows the parents up to a child of the agent. True for a descendant. */
static bool attribute_by_descent(pid_t pid, struct status *status) {
    struct status ancestor = *status;
    pid_t top = pid;
    while (ancestor.parent != self) {
        top = ancestor.parent;
        if (top <= 1 || !read_status(top, &ancestor))
            return false;
    }
    status->slot = slot_of_pid(top);
    /* An orphan has become the agent's own child; its session may still tell where it is from. */
    if (status->slot == TREE_NOBODY)
        status->slot = slot_of_pid(getsid(pid));
    return true;
}

static bool inspect(pid_t pid, struct status *status) {
    if (pid <= 0 || pid == self || !read_status(pid, status))
        return false;
    if (identity_is_plain() && !attribute_by_descent(pid, status))
        return false;
    return status->alive;
}

bool tree_walk_begin(void) {
    if (listing == NULL)
        return false;
    rewinddir(listing);
    return true;
}

bool tree_walk_step(unsigned budget, tree_visitor *visit) {
    while (budget-- > 0) {
        struct dirent *entry = readdir(listing);
        if (entry == NULL)
            return true;
        pid_t pid = parse_number(entry->d_name);
        struct status status;
        if (inspect(pid, &status))
            visit(pid, status.slot, status.stopped);
    }
    return false;
}

static void kill_visited(pid_t pid, int slot, bool stopped) {
    (void)slot;
    (void)stopped;
    kill(pid, SIGKILL);
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
        tree_walk_begin();
        while (!tree_walk_step(UINT32_MAX, kill_visited))
            ;
        poll(NULL, 0, PLAIN_END_PAUSE_MS);
    }
}

void tree_kill_everything(void) {
    if (identity_is_plain())
        kill_descendants();
    else
        kill(-1, SIGKILL); /* the kernel ends whatever is left when process 1 exits */
}
