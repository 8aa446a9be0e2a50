/* Starts a program as process 1 of a new pid, mount and user namespace with 65,536 ids, as an OCI
   runtime would: user 0, four capabilities, no_new_privs off. Needs root.

   usage: box PROGRAM [ARGUMENT...] */
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define IDS "0 1000000000 65536\n"
static const uint32_t kept = 1U << CAP_SETUID | 1U << CAP_SETGID | 1U << CAP_KILL | 1U << CAP_SETPCAP;

static void need(int ok, const char *what) {
    if (ok)
        return;
    perror(what);
    exit(99);
}

static void write_map(pid_t pid, const char *name) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", (int)pid, name);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    need(fd >= 0 && write(fd, IDS, strlen(IDS)) == (ssize_t)strlen(IDS), path);
    close(fd);
}

static void keep_four_capabilities(void) {
    for (int cap = 0; cap <= CAP_LAST_CAP; cap++)
        if (cap >= 32 || !(kept >> cap & 1))
            prctl(PR_CAPBSET_DROP, cap, 0, 0, 0);
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct sets[2] = {{.effective = kept, .permitted = kept}};
    need(syscall(SYS_capset, &header, sets) == 0, "capset");
}

static void first_process(int program, char **argv) {
    need(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0, "mount /");
    need(mount("proc", "/proc", "proc", 0, NULL) == 0, "mount /proc");
    keep_four_capabilities();
    fexecve(program, argv, environ);
    need(0, argv[0]);
}

static void namespaces(int program, char **argv, int to_parent, int from_parent) {
    char byte = 0;
    need(unshare(CLONE_NEWUSER) == 0, "unshare user");
    need(write(to_parent, &byte, 1) == 1 && read(from_parent, &byte, 1) == 1, "maps");
    need(setgroups(0, NULL) == 0 && setresgid(0, 0, 0) == 0 && setresuid(0, 0, 0) == 0, "ids");
    need(unshare(CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS) == 0, "unshare");
    pid_t first = fork();
    if (first == 0)
        first_process(program, argv);
    int status;
    need(first > 0 && waitpid(first, &status, 0) == first, "fork");
    exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
}

int main(int argc, char **argv) {
    int up[2], down[2];
    char byte = 0;
    need(argc > 1 && pipe2(up, O_CLOEXEC) == 0 && pipe2(down, O_CLOEXEC) == 0, "pipe");
    /* Opened by the real root: the folder may be closed to the box. */
    int program = open(argv[1], O_RDONLY);
    need(program >= 0, argv[1]);
    pid_t child = fork();
    if (child == 0)
        namespaces(program, argv + 1, up[1], down[0]);
    need(child > 0, "fork");
    close(up[1]);
    close(STDIN_FILENO);
    close(STDOUT_FILENO);
    int status;
    if (read(up[0], &byte, 1) == 1) {
        write_map(child, "uid_map");
        write_map(child, "gid_map");
        need(write(down[1], &byte, 1) == 1, "maps");
    }
    need(waitpid(child, &status, 0) == child, "wait");
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
