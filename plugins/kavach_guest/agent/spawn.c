#include "spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "identity.h"
#include "terminal.h"

enum {
    CHILD_STACK = 65536,
    DEFAULT_UMASK = 0022,
    FIXED_DESCRIPTORS = 24, /* 0 to 2, what is prepared, the pipes being made, and some */
    DESCRIPTORS_PER_CHANNEL = 3,
    NICE_STEP = 19,
};

/* What the child reads, and where it says why it failed: it runs in the agent's memory, and the
   agent waits until it has started the program or is gone, so no error pipe is needed. */
static struct launch {
    const struct request *request;
    gid_t marker;
    int priority;
    int descriptors[3];
    volatile int stage;
    volatile int error;
} launch;

static _Alignas(16) char child_stack[CHILD_STACK];
static int null_device = -1;
static int own_program = -1;
/* What the box came with is for the agent; commands get the soft limit, and no way to raise it. */
static struct rlimit agent_limit;
static struct rlimit command_limit;
static bool limit_raised;

const char *spawn_prepare(void) {
    null_device = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (null_device < 0)
        return "cannot open /dev/null";
    /* For reading, as gVisor starts no program by an O_PATH descriptor. Nobody in the box can put
       another in its place, and it needs no way to it in the root. */
    own_program = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    if (own_program < 0)
        return "cannot open the agent's own program";
    terminal_prepare();
    umask(DEFAULT_UMASK);
    if (chdir("/") != 0 || getrlimit(RLIMIT_NOFILE, &agent_limit) != 0)
        return "cannot read the limits of the box";
    command_limit = (struct rlimit){.rlim_cur = agent_limit.rlim_cur, .rlim_max = agent_limit.rlim_cur};
    return NULL;
}

static void raise_descriptor_limit(unsigned channels_open) {
    rlim_t needed = FIXED_DESCRIPTORS + (rlim_t)DESCRIPTORS_PER_CHANNEL * (channels_open + 1);
    if (limit_raised || needed <= agent_limit.rlim_cur)
        return;
    struct rlimit raised = {.rlim_cur = agent_limit.rlim_max, .rlim_max = agent_limit.rlim_max};
    limit_raised = setrlimit(RLIMIT_NOFILE, &raised) == 0;
}

static const char *find_path(char **envp) {
    for (; *envp != NULL; envp++)
        if (strncmp(*envp, "PATH=", 5) == 0)
            return *envp + 5;
    return "/usr/local/bin:/usr/bin:/bin";
}

/* Puts "directory/name" together; an empty directory is the current one. */
static bool join(char *path, const char *directory, size_t directory_length, const char *name) {
    size_t name_length = strlen(name);
    if (directory_length + name_length + 2 > PATH_MAX)
        return false;
    memcpy(path, directory, directory_length);
    if (directory_length > 0)
        path[directory_length++] = '/';
    memcpy(path + directory_length, name, name_length + 1);
    return true;
}

static bool goes_on(int error) {
    return error == ENOENT || error == ENOTDIR || error == EACCES || error == ENAMETOOLONG;
}

static int execute_own_program(const struct request *r) {
    syscall(SYS_execveat, own_program, "", r->argv, r->envp, AT_EMPTY_PATH);
    return errno;
}

/* As execvp, but a file without a known format is an error and never given to a shell. */
static int execute(const struct request *r) {
    const char *name = r->argv[0];
    if (*name == 0 || strchr(name, '/') != NULL) {
        execve(name, r->argv, r->envp);
        return errno;
    }
    char path[PATH_MAX];
    int error = ENOENT;
    const char *directory = find_path(r->envp);
    for (;;) {
        size_t length = strcspn(directory, ":");
        if (join(path, directory, length, name)) {
            execve(path, r->argv, r->envp);
            if (!goes_on(errno))
                return errno;
            if (errno == EACCES)
                error = EACCES;
        }
        if (directory[length] == 0)
            return error;
        directory += length + 1;
    }
}

static int failed(int stage, int error) {
    launch.stage = stage;
    launch.error = error;
    return 127;
}

static int child_main(void *unused) {
    (void)unused;
    const struct request *r = launch.request;
    setsid();
    int error = r->rows > 0 ? terminal_take(launch.descriptors[0]) : 0;
    if (error != 0)
        return failed(STAGE_RESOURCES, error);
    for (int i = 0; i < 3; i++)
        if (dup2(launch.descriptors[i], i) < 0)
            return failed(STAGE_RESOURCES, errno);
    if (r->umask != DEFAULT_UMASK)
        umask(r->umask);
    if (setrlimit(RLIMIT_NOFILE, &command_limit) != 0)
        return failed(STAGE_RESOURCES, errno);
    /* Among hundreds that never rest the agent has to come round in time to kill them. Only those of
       one box are compared: outside, its cgroup counts. */
    if (setpriority(PRIO_PROCESS, 0, launch.priority) != 0)
        return failed(STAGE_RESOURCES, errno);
    error = identity_become(r, launch.marker);
    if (error != 0)
        return failed(STAGE_IDENTITY, error);
    /* The agent is in "/" already. */
    if (strcmp(r->cwd, "/") != 0 && chdir(r->cwd) != 0)
        return failed(STAGE_DIRECTORY, errno);
    /* The agent ignores no signal, it only blocks some: an empty mask is all there is to restore. */
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    return failed(STAGE_PROGRAM, r->tool ? execute_own_program(r) : execute(r));
}

static void close_if_open(int descriptor) {
    if (descriptor >= 0)
        close(descriptor);
}

/* Makes the pipes; theirs[] are the command's ends. The agent's ends never block: a command can
   open its own pipe and take away what poll has announced. */
static int make_pipes(const struct request *r, int theirs[3], struct spawned *s) {
    int pair[2];
    for (int i = r->stdin_pipe ? 0 : 1; i < 3; i++) {
        if (pipe2(pair, O_CLOEXEC) != 0)
            return errno;
        int own = i == 0 ? 1 : 0;
        *(i == 0 ? &s->input : &s->output[i - 1]) = pair[own];
        theirs[i] = pair[1 - own];
        if (fcntl(pair[own], F_SETFL, O_NONBLOCK) != 0)
            return errno;
    }
    return 0;
}

/* Its one end is both read and written; two descriptors, so that each direction can be closed. */
static int make_terminal(const struct request *r, int theirs[3], struct spawned *s) {
    int error = terminal_make(r->rows, r->columns, &s->output[0], &theirs[0]);
    if (error != 0 || !r->stdin_pipe)
        return error;
    s->input = fcntl(s->output[0], F_DUPFD_CLOEXEC, 0);
    return s->input < 0 ? errno : 0;
}

/* What is made belongs to the command's user, so that it can open /dev/stdout and /proc/self/fd/1. */
static int make_streams_as(const struct request *r, int theirs[3], struct spawned *s) {
    if (!identity_act_as(r->uid)) {
        s->stage = STAGE_IDENTITY;
        return errno;
    }
    int error = r->rows > 0 ? make_terminal(r, theirs, s) : make_pipes(r, theirs, s);
    /* It has just been possible at the start; an agent without its identity must not go on. */
    if (!identity_act_as_self())
        _exit(1);
    return error;
}

static void create_process(const struct request *r, int slot, const int theirs[3],
                           struct spawned *s) {
    launch = (struct launch){
        .request = r,
        .marker = (gid_t)(MARKER_FIRST + slot),
        .priority = getpriority(PRIO_PROCESS, 0) + (identity_is_plain() ? 0 : NICE_STEP),
        .descriptors = {theirs[0] < 0 ? null_device : theirs[0], theirs[1], theirs[2]},
    };
    if (r->rows > 0)
        launch.descriptors[1] = launch.descriptors[2] = theirs[0];
    pid_t pid = clone(child_main, child_stack + CHILD_STACK, CLONE_VM | CLONE_VFORK | SIGCHLD, NULL);
    if (pid < 0) {
        s->stage = STAGE_RESOURCES;
        s->error = errno;
        return;
    }
    s->pid = pid;
    s->stage = launch.stage;
    s->error = launch.error;
}

void spawn_command(const struct request *r, int slot, unsigned channels_open,
                   struct spawned *s) {
    int theirs[3] = {-1, -1, -1};
    *s = (struct spawned){.input = -1, .output = {-1, -1}};
    raise_descriptor_limit(channels_open);
    int error = make_streams_as(r, theirs, s);
    if (error == 0) {
        create_process(r, slot, theirs, s);
    } else {
        if (s->stage == STAGE_NONE)
            s->stage = STAGE_RESOURCES;
        s->error = error;
    }
    for (int i = 0; i < 3; i++)
        close_if_open(theirs[i]);
    if (s->stage == STAGE_NONE)
        return;
    close_if_open(s->input);
    close_if_open(s->output[0]);
    close_if_open(s->output[1]);
}
