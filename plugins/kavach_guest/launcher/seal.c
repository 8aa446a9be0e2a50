/* kavach-seal MARK PATH... -- PROGRAM ARGUMENT...

   Starts PROGRAM, a runtime, once it has noted in the link MARK, as "PID START", which process that is: a caller that is killed
   may leave a runtime that is about to make a box, and whoever looks after him has to find it. Where the link is already
   there, or its directory no more, nothing is started.

   PROGRAM is started where each PATH of the host, with all that is mounted below it, is read-only. Runtimes do less: runc
   and crun make a mount read-only but not those below it, and gVisor's Sentry opens the host's files itself, so that what it gets
   wrong about a read-only mount, the host's kernel would let pass. Needs CAP_SYS_ADMIN; nothing of the host itself
   changes, because the mounts are made in a mount namespace of PROGRAM's own. */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The kernel's numbers, for libcs older than the call: mount_setattr(2), Linux 5.12. */
enum { MOUNT_SETATTR = 442, RECURSIVE = 0x8000 };
#define READ_ONLY UINT64_C(0x1)
#define NO_SETUID UINT64_C(0x2)
#define NO_DEVICES UINT64_C(0x4)

struct mount_attributes {
    uint64_t set;
    uint64_t clear;
    uint64_t propagation;
    uint64_t user_namespace;
};

/* Six of the eighteen fields between the state and the start. */
#define SKIPPED " %*d %*d %*d %*d %*d %*d"

static int fail(const char *what) {
    fprintf(stderr, "kavach-seal: %s: %s\n", what, strerror(errno));
    return 125;
}

static int seal(const char *path) {
    struct mount_attributes read_only = {.set = READ_ONLY | NO_SETUID | NO_DEVICES};
    if (mount(path, path, NULL, MS_BIND | MS_REC, NULL) != 0)
        return -1;
    return (int)syscall(MOUNT_SETATTR, AT_FDCWD, path, RECURSIVE, &read_only, sizeof read_only);
}

/* Our start, field 22 of proc(5)'s stat, which with the number says for ever who we are. */
static unsigned long long own_start(void) {
    unsigned long long start = 0;
    FILE *file = fopen("/proc/self/stat", "re");
    if (file != NULL) {
        if (fscanf(file, "%*d (%*[^)]) %*c" SKIPPED SKIPPED SKIPPED " %llu", &start) != 1)
            start = 0;
        fclose(file);
    }
    return start;
}

static int note(const char *mark) {
    char text[64];
    snprintf(text, sizeof text, "%d %llu", (int)getpid(), own_start());
    return symlink(text, mark);
}

int main(int argc, char **argv) {
    int end = 2;
    while (end < argc && strcmp(argv[end], "--") != 0)
        end++;
    if (end + 1 >= argc) {
        errno = EINVAL;
        return fail("MARK PATH... -- PROGRAM ARGUMENT...");
    }
    if (note(argv[1]) != 0)
        return fail(argv[1]);
    /* Private: nothing of this goes to the host, and nothing that the host mounts later comes in unsealed. */
    if (unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0)
        return fail("a mount namespace");
    for (int i = 2; i < end; i++)
        if (seal(argv[i]) != 0)
            return fail(argv[i]);
    execv(argv[end + 1], argv + end + 1);
    return fail(argv[end + 1]);
}
