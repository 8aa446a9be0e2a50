/* kavach-seal PATH... -- PROGRAM ARGUMENT...

   Starts PROGRAM, a runtime, where each PATH of the host, with all that is mounted below it, is read-only. Runtimes do less: runc
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

int main(int argc, char **argv) {
    int end = 1;
    while (end < argc && strcmp(argv[end], "--") != 0)
        end++;
    if (end + 1 >= argc) {
        errno = EINVAL;
        return fail("PATH... -- PROGRAM ARGUMENT...");
    }
    /* Private: nothing of this goes to the host, and nothing that the host mounts later comes in unsealed. */
    if (unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0)
        return fail("a mount namespace");
    for (int i = 1; i < end; i++)
        if (seal(argv[i]) != 0)
            return fail(argv[i]);
    execv(argv[end + 1], argv + end + 1);
    return fail(argv[end + 1]);
}
