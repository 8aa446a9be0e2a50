/* What commands do in these tests: one program, so that the box needs no interpreter.

   Where a mode takes a FIFO, every process of it holds the FIFO open for writing and has written
   one byte: the reader knows that it lives, and its end of file is the proof that all are dead. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static void hold(const char *fifo) {
    int fd = open(fifo, O_WRONLY);
    if (fd < 0 || write(fd, "r", 1) != 1)
        exit(98);
}

static int sleep_forever(void) {
    while (pause() < 0)
        ;
    return 0;
}

static void ignore_everything(void) {
    for (int number = 1; number < 65; number++)
        signal(number, SIG_IGN);
}

/* The classic daemon: two forks, a session of its own, nothing left of the parents. */
static void become_daemon(void) {
    if (fork() > 0)
        exit(0);
    setsid();
    if (fork() > 0)
        exit(0);
}

static int close_outputs(void) {
    close(0);
    close(1);
    return close(2);
}

/* daemon FIFO: leaves a silent daemon behind */
static int mode_daemon(char **argv) {
    pid_t child = fork();
    if (child > 0) {
        waitpid(child, NULL, 0);
        return 0;
    }
    become_daemon();
    hold(argv[0]);
    close_outputs();
    return sleep_forever();
}

/* holder FIFO: leaves a daemon behind that keeps the output open */
static int mode_holder(char **argv) {
    pid_t child = fork();
    if (child > 0) {
        waitpid(child, NULL, 0);
        return 0;
    }
    become_daemon();
    hold(argv[0]);
    return sleep_forever();
}

/* stubborn FIFO: ignores what can be ignored */
static int mode_stubborn(char **argv) {
    ignore_everything();
    hold(argv[0]);
    return sleep_forever();
}

/* stopped FIFO: a child and its child, both stopped */
static int mode_stopped(char **argv) {
    for (int i = 0; i < 2; i++)
        if (fork() == 0) {
            if (i == 1)
                setsid();
            hold(argv[0]);
            kill(getpid(), SIGSTOP);
            return sleep_forever();
        }
    hold(argv[0]);
    return sleep_forever();
}

static int bomb(char **argv, int with_sessions) {
    struct rlimit limit = {.rlim_cur = (rlim_t)atoi(argv[1]), .rlim_max = (rlim_t)atoi(argv[1])};
    signal(SIGCHLD, SIG_IGN);
    if (setrlimit(RLIMIT_NPROC, &limit) != 0)
        return 97;
    hold(argv[0]);
    for (;;)
        if (fork() == 0 && with_sessions)
            setsid();
}

/* bomb FIFO LIMIT and sessionbomb FIFO LIMIT: fork bombs below RLIMIT_NPROC */
static int mode_bomb(char **argv) {
    return bomb(argv, 0);
}

static int mode_sessionbomb(char **argv) {
    return bomb(argv, 1);
}

/* hopper FIFO: a process that lives on by forking and ending, always under a new number */
static int mode_hopper(char **argv) {
    signal(SIGCHLD, SIG_IGN);
    hold(argv[0]);
    if (fork() > 0)
        return 0;
    close_outputs();
    for (;;) {
        if (fork() > 0)
            _exit(0);
        setsid();
    }
}

static void *thread_main(void *fifo) {
    hold(fifo);
    return (void *)(intptr_t)sleep_forever();
}

/* headless FIFO: the first thread ends, so that the process looks like a zombie and is none */
static int mode_headless(char **argv) {
    if (fork() > 0)
        return 0;
    pthread_t thread;
    pthread_create(&thread, NULL, thread_main, argv[0]);
    syscall(SYS_exit, 0);
    return 0;
}

static void try_write(const char *path, const char *text) {
    int fd = open(path, O_WRONLY);
    if (fd < 0 || write(fd, text, strlen(text)) < 0)
        printf("%s: %s\n", path, strerror(errno));
    close(fd);
}

/* escape FIFO: tries to shake off the marker in a user namespace of its own; tells its groups */
static int mode_escape(char **argv) {
    char map[32];
    int gid = (int)getgid(), uid = (int)getuid();
    if (argv[1] != NULL)
        prctl(PR_SET_NAME, argv[1]);
    int entered = unshare(CLONE_NEWUSER) == 0;
    snprintf(map, sizeof map, "0 %d 1\n", uid);
    if (entered)
        try_write("/proc/self/uid_map", map);
    snprintf(map, sizeof map, "0 %d 1\n", gid);
    if (entered)
        try_write("/proc/self/gid_map", map);
    int dropped = setgroups(0, NULL) == 0;
    printf("entered=%d dropped=%d groups=%d\n", entered, dropped, getgroups(0, NULL));
    fflush(stdout);
    hold(argv[0]);
    return sleep_forever();
}

/* late GO BYTES DONE: a child writes that much after its parent's end, and says so; two FIFOs */
static int mode_late(char **argv) {
    static char block[65536];
    long bytes = atol(argv[1]);
    if (fork() > 0)
        return 0;
    int fd = open(argv[0], O_RDWR);
    char go;
    if (read(fd, &go, 1) != 1)
        return 98;
    for (; bytes > 0; bytes -= (long)sizeof block)
        if (write(1, block, sizeof block) != (ssize_t)sizeof block)
            return 1;
    fd = argv[2] == NULL ? 1 : open(argv[2], O_WRONLY);
    return write(fd, "done", 4) == 4 ? 0 : 1;
}

/* spew BYTES: the digits of a counter, so that every byte's place can be checked */
static int mode_spew(char **argv) {
    static char block[65536];
    size_t left = strtoul(argv[0], NULL, 10);
    for (size_t i = 0; i < sizeof block; i++)
        block[i] = (char)('a' + i % 26 % 23);
    while (left > 0) {
        ssize_t n = write(1, block, left < sizeof block ? left : sizeof block);
        if (n < 0)
            return 1;
        left -= (size_t)n;
    }
    return 0;
}

/* sink: how many bytes came, and their sum */
static int mode_sink(char **argv) {
    (void)argv;
    static unsigned char block[65536];
    unsigned long count = 0, sum = 0;
    for (ssize_t n; (n = read(0, block, sizeof block)) > 0; count += (unsigned long)n)
        for (ssize_t i = 0; i < n; i++)
            sum += block[i];
    printf("%lu %lu\n", count, sum);
    return 0;
}

/* deaf FIFO: closes its stdin, then waits for a byte from the FIFO */
static int mode_deaf(char **argv) {
    char byte;
    close(0);
    puts("deaf");
    fflush(stdout);
    int fd = open(argv[0], O_RDWR);
    return read(fd, &byte, 1) == 1 ? 0 : 1;
}

/* half FIFO: closes its stdout, then its stderr goes on when the FIFO says so */
static int mode_half(char **argv) {
    char byte;
    close(1);
    int fd = open(argv[0], O_RDWR);
    if (read(fd, &byte, 1) != 1)
        return 1;
    return write(2, "still here", 10) == 10 ? 0 : 1;
}

/* self: who and what the command is, a line for each fact */
static int mode_self(char **argv) {
    (void)argv;
    printf("pid %d sid %d pgid %d\n", getpid(), getsid(0), getpgid(0));
    printf("fds");
    for (int fd = 0; fd < 1024; fd++)
        if (fcntl(fd, F_GETFD) >= 0)
            printf(" %d", fd);
    printf("\nignored");
    for (int number = 1; number < 65; number++) {
        struct sigaction action;
        if (sigaction(number, NULL, &action) == 0 && action.sa_handler != SIG_DFL)
            printf(" %d", number);
    }
    sigset_t blocked;
    sigprocmask(SIG_BLOCK, NULL, &blocked);
    printf("\nblocked");
    for (int number = 1; number < 65; number++)
        if (sigismember(&blocked, number) == 1)
            printf(" %d", number);
    mode_t mask = umask(0);
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    printf("\numask %o\nnofile %lu\n", mask, (unsigned long)limit.rlim_cur);
    char *cwd = getcwd(NULL, 0);
    printf("cwd %s\n", cwd == NULL ? "?" : cwd);
    int reopened = open("/proc/self/fd/1", O_WRONLY);
    printf("reopen %s\n", reopened < 0 ? strerror(errno) : "ok");
    return 0;
}

/* args and env: what came, NUL-terminated */
static int mode_args(char **argv) {
    for (; *argv != NULL; argv++)
        fwrite(*argv, 1, strlen(*argv) + 1, stdout);
    return 0;
}

static int mode_env(char **argv) {
    (void)argv;
    return mode_args(environ);
}

static void report(const char *what, long result) {
    printf("%s %s\n", what, result >= 0 ? "ok" : strerrorname_np(errno));
}

/* attack: everything that could touch process 1, and how it went */
static int mode_attack(char **argv) {
    (void)argv;
    char byte;
    struct iovec local = {&byte, 1}, remote = {(void *)0x400000, 1};
    char link[64];
    report("mem", open("/proc/1/mem", O_RDONLY));
    report("memw", open("/proc/1/mem", O_RDWR));
    report("environ", open("/proc/1/environ", O_RDONLY));
    report("maps", open("/proc/1/maps", O_RDONLY));
    report("stdin", open("/proc/1/fd/0", O_RDONLY));
    report("stdout", open("/proc/1/fd/1", O_WRONLY));
    report("exe", readlink("/proc/1/exe", link, sizeof link));
    report("root", open("/proc/1/root/proc", O_RDONLY));
    report("readv", process_vm_readv(1, &local, 1, &remote, 1, 0));
    report("attach", ptrace(PTRACE_ATTACH, 1, NULL, NULL));
    report("seize", ptrace(PTRACE_SEIZE, 1, NULL, NULL));
    report("pidfd_getfd", syscall(SYS_pidfd_getfd, syscall(SYS_pidfd_open, 1, 0), 0, 0));
    report("prlimit", prlimit(1, RLIMIT_NOFILE, &(struct rlimit){0, 0}, NULL));
    report("stop", kill(1, SIGSTOP));
    report("kill", kill(1, SIGKILL));
    report("setgroups", setgroups(0, NULL));
    report("setuid", setuid(getuid() == 0 ? 1000 : 0));
    return 0;
}

static const struct {
    const char *name;
    int (*run)(char **argv);
} modes[] = {
    {"daemon", mode_daemon},   {"holder", mode_holder},
    {"stubborn", mode_stubborn}, {"stopped", mode_stopped},
    {"bomb", mode_bomb},       {"sessionbomb", mode_sessionbomb},
    {"hopper", mode_hopper},   {"headless", mode_headless},
    {"escape", mode_escape},   {"late", mode_late},
    {"spew", mode_spew},       {"sink", mode_sink},
    {"deaf", mode_deaf},       {"half", mode_half},
    {"self", mode_self},       {"args", mode_args},
    {"env", mode_env},         {"attack", mode_attack},
};

int main(int argc, char **argv) {
    for (size_t i = 0; argc > 1 && i < sizeof modes / sizeof *modes; i++)
        if (strcmp(argv[1], modes[i].name) == 0)
            return modes[i].run(argv + 2);
    return 99;
}
