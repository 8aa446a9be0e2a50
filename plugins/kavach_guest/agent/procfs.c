#include "procfs.h"

#include <fcntl.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "proto.h"

enum {
    TEXT_SIZE = 4096, /* status: about 1.4 KB, and at most 700 bytes more for 65 groups */
    PATH_SIZE = 32,
    TICK_US = 10000, /* USER_HZ is 100 wherever the agent runs, gVisor included */
    /* Fields of stat, counted from the state, the first one after the name. */
    FIELD_OWN = 11,
    FIELD_CHILDREN = 13,
    FIELD_RSS = 21,
    CLOCK_OF_PROCESS = 2,
};

static int proc = -1;
static pid_t self;
static uint64_t page_size;

const char *procfs_prepare(void) {
    self = getpid();
    page_size = (uint64_t)sysconf(_SC_PAGESIZE);
    proc = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return proc < 0 ? "cannot open /proc" : NULL;
}

DIR *procfs_list(void) {
    int again = openat(proc, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return again < 0 ? NULL : fdopendir(again);
}

static uint64_t parse_number(const char *text) {
    uint64_t number = 0;
    for (; *text >= '0' && *text <= '9'; text++)
        number = number * 10 + (uint64_t)(*text - '0');
    return number;
}

pid_t procfs_next(DIR *list) {
    for (struct dirent *entry; (entry = readdir(list)) != NULL;) {
        pid_t pid = (pid_t)parse_number(entry->d_name);
        if (pid > 0 && pid != self)
            return pid;
    }
    return 0;
}

/* The file's text, valid until the next call; NULL without one. */
static char *read_file(pid_t pid, const char *file) {
    static char text[TEXT_SIZE];
    char path[PATH_SIZE] = {0};
    char *p = path + sizeof path - 1 - strlen(file);
    memcpy(p, file, strlen(file));
    for (; pid > 0; pid /= 10)
        *--p = (char)('0' + pid % 10);
    int fd = openat(proc, p, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return NULL;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n <= 0)
        return NULL;
    text[n] = 0;
    return text;
}

/* ---- status ---- */

static int marker_slot(const char *groups) {
    for (;;) {
        groups += strspn(groups, " \t");
        if (*groups < '0' || *groups > '9')
            return NO_SLOT;
        uint64_t group = parse_number(groups);
        if (group >= MARKER_FIRST && group < MARKER_FIRST + SLOTS)
            return (int)(group - MARKER_FIRST);
        groups += strspn(groups, "0123456789");
    }
}

static const char *value_of(const char *line, const char *key) {
    size_t length = strlen(key);
    return strncmp(line, key, length) == 0 ? line + length + strspn(line + length, " \t") : NULL;
}

/* The last line with a key counts: not every kernel (gVisor) escapes a newline in the process's
   name, which it chooses itself and which comes first. */
static void parse_status(const char *text, struct process *process) {
    for (const char *line = text; line != NULL && *line != 0;) {
        const char *value;
        if ((value = value_of(line, "State:")) != NULL)
            process->state = *value;
        else if ((value = value_of(line, "PPid:")) != NULL)
            process->parent = (pid_t)parse_number(value);
        else if ((value = value_of(line, "Uid:")) != NULL)
            process->uid = (uid_t)parse_number(value);
        else if ((value = value_of(line, "Groups:")) != NULL)
            process->slot = marker_slot(value);
        else if ((value = value_of(line, "Threads:")) != NULL)
            process->threads = (uint32_t)parse_number(value);
        line = strchr(line, '\n');
        line = line == NULL ? NULL : line + 1;
    }
}

bool procfs_read_process(pid_t pid, struct process *process) {
    const char *text = read_file(pid, "/status");
    if (text == NULL)
        return false;
    *process = (struct process){.pid = pid, .threads = 1, .slot = NO_SLOT, .state = '?'};
    parse_status(text, process);
    /* A process whose first thread has ended looks like a zombie while its other threads run on. */
    process->alive = (process->state != 'Z' && process->state != 'X') || process->threads > 1;
    return true;
}

/* ---- stat ---- */

/* To the nanosecond where the kernel shows it; gVisor shows others' clocks to nobody. */
static bool read_clock(pid_t pid, uint64_t *microseconds) {
    struct timespec t;
    if (clock_gettime((clockid_t)(~(unsigned)pid << 3 | CLOCK_OF_PROCESS), &t) != 0)
        return false;
    *microseconds = (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
    return true;
}

static void parse_stat(const char *fields, struct consumption *c) {
    for (int field = 0; *fields != 0; field++) {
        uint64_t number = parse_number(fields);
        if (field == FIELD_OWN || field == FIELD_OWN + 1)
            c->own_us += number * TICK_US;
        else if (field == FIELD_CHILDREN || field == FIELD_CHILDREN + 1)
            c->children_us += number * TICK_US;
        else if (field == FIELD_RSS)
            c->rss_bytes = number * page_size;
        fields += strcspn(fields, " ");
        fields += strspn(fields, " ");
    }
}

bool procfs_read_consumption(pid_t pid, struct consumption *c) {
    const char *text = read_file(pid, "/stat");
    if (text == NULL)
        return false;
    /* The name may hold anything, parentheses too; nothing after it does. */
    const char *name = strchr(text, '('), *end = strrchr(text, ')');
    *c = (struct consumption){0};
    if (name == NULL || end == NULL || end < name)
        return false;
    c->name_length = (size_t)(end - name - 1);
    if (c->name_length > NAME_MAX_BYTES)
        c->name_length = NAME_MAX_BYTES;
    memcpy(c->name, name + 1, c->name_length);
    parse_stat(end + 1 + strspn(end + 1, " "), c);
    read_clock(pid, &c->own_us);
    return true;
}
