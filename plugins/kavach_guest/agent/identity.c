#include "identity.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The libc wrappers of setres[ug]id and setgroups change every thread of the process, with locks
   and signals: wrong in a child that borrows the agent's memory. capset has no wrapper at all. */

/* The kernel's numbers, so that no kernel headers are needed beside the libc's. */
enum {
    CAPABILITY_KILL = 5,
    CAPABILITY_SETGID = 6,
    CAPABILITY_SETUID = 7,
    CAPABILITY_LIMIT = 64,
    AMBIENT = 47,
    AMBIENT_CLEAR_ALL = 4,
};
#define CAPABILITY_VERSION_3 0x20080522U
#define CAPABILITIES_KEPT (1U << CAPABILITY_KILL | 1U << CAPABILITY_SETGID | 1U << CAPABILITY_SETUID)

struct capability_header {
    uint32_t version;
    int pid;
};

struct capability_sets {
    uint32_t effective;
    uint32_t permitted;
    uint32_t inheritable;
};

static bool plain;
static uid_t acting_as;

bool identity_is_plain(void) {
    return plain;
}

static long set_capabilities(uint32_t kept) {
    struct capability_header header = {.version = CAPABILITY_VERSION_3};
    struct capability_sets sets[2] = {{.effective = kept, .permitted = kept}};
    return syscall(SYS_capset, &header, sets);
}

static const char *empty_bounding_set(void) {
    for (unsigned long capability = 0; capability < CAPABILITY_LIMIT; capability++) {
        if (prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0)
            continue;
        if (errno == EINVAL) /* past the last one that this kernel knows */
            return NULL;
        return "the bounding set cannot be emptied: CAP_SETPCAP is missing";
    }
    return NULL;
}

/* Not user 0: a command may be that, and could then signal the agent, change its limits and more.
   The capabilities outlast the change of user, now and each time that the agent acts as user 0. */
static const char *take_own_user(void) {
    if (prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) != 0 ||
        syscall(SYS_setresuid, AGENT_USER, AGENT_USER, AGENT_USER) != 0)
        return "the agent's user is not mapped in the box";
    if (set_capabilities(CAPABILITIES_KEPT) != 0)
        return "CAP_SETUID, CAP_SETGID or CAP_KILL is missing";
    return NULL;
}

/* With fs.suid_dumpable=1 every change of identity would open the agent's memory to the commands. */
static const char *hide(void) {
    if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0 || !identity_act_as(0) || !identity_act_as_self())
        return "the agent cannot hide its memory";
    if (prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) == 1)
        return "the agent cannot hide its memory: fs.suid_dumpable is 1";
    return NULL;
}

/* gVisor guards /proc/1/fd and /proc/1/environ by file permissions only. So the host's pipes lose
   theirs, for whoever would open them anew, and the environment its contents. On Linux the agent
   does not own the pipes: there this fails, and not being dumpable is guard enough. */
static void close_side_doors(void) {
    for (int fd = STDIN_FILENO; fd <= STDOUT_FILENO; fd++) {
        struct stat about;
        if (fstat(fd, &about) == 0 && S_ISFIFO(about.st_mode))
            (void)fchmod(fd, 0);
    }
    for (char **variable = environ; *variable != NULL; variable++)
        memset(*variable, 0, strlen(*variable));
}

const char *identity_enter_box(void) {
    if (getpid() != 1)
        return "not process 1 of a box (see --plain)";
    if (geteuid() != 0 || getuid() != 0 || getgid() != 0)
        return "not started as user and group 0";
    close_side_doors();
    const char *problem = empty_bounding_set();
    if (problem != NULL)
        return problem;
    /* Fails where the kernel has no ambient set (gVisor): then there is nothing to clear. */
    prctl(AMBIENT, AMBIENT_CLEAR_ALL, 0, 0, 0);
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        return "no_new_privs is refused";
    problem = take_own_user();
    return problem != NULL ? problem : hide();
}

const char *identity_enter_plain(void) {
    plain = true;
    if (prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0)
        return "cannot become a subreaper";
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        return "no_new_privs is refused";
    return NULL;
}

bool identity_act_as(uid_t uid) {
    acting_as = uid;
    return plain || syscall(SYS_setresuid, -1, uid, -1) == 0;
}

/* Leaving user 0 makes the capabilities ineffective, if it was that. */
bool identity_act_as_self(void) {
    if (plain)
        return true;
    return syscall(SYS_setresuid, -1, AGENT_USER, -1) == 0 &&
           (acting_as != 0 || set_capabilities(CAPABILITIES_KEPT) == 0);
}

static int check_plain(const struct request *r) {
    bool own = r->uid == getuid() && r->gid == getgid() && r->group_count == 0;
    return own ? 0 : EPERM;
}

int identity_become(const struct request *r, gid_t marker) {
    if (plain)
        return check_plain(r);
    gid_t groups[GROUPS_MAX + 1];
    memcpy(groups, r->groups, r->group_count * sizeof *groups);
    groups[r->group_count] = marker;
    if (syscall(SYS_setgroups, r->group_count + 1, groups) != 0 ||
        syscall(SYS_setresgid, r->gid, r->gid, r->gid) != 0 ||
        syscall(SYS_setresuid, r->uid, r->uid, r->uid) != 0)
        return errno;
    /* The agent's capabilities outlast a change of user, so nothing else takes them away here. */
    return set_capabilities(0) == 0 ? 0 : errno;
}
