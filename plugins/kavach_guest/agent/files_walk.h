/* Going through a tree of directories with one descriptor, however deep it is. */
#ifndef KAVACH_FILES_WALK_H
#define KAVACH_FILES_WALK_H

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

struct level; /* a directory on the way from the root */

/* `fd` is the directory where the walk is, or -1 when it has left the root. */
struct walk {
    const char *root; /* path of the root, for errors */
    int fd;
    struct level *top;
    unsigned depth;
};

/* Opens a directory that is no link to one; -1 and errno where it is none. */
int directory_open(int parent, const char *name);

/* Goes into the directory `fd`, which is closed later. `mode` is given to it when it is left, unless it
   is NO_MODE. All three fail (ENOMEM, ESTALE when it was moved meanwhile, what the kernel says) by
   wire_fail. */
#define NO_MODE ((mode_t)-1)
void walk_enter(struct walk *walk, int fd, const char *name, mode_t mode);

/* Reads the names in the directory; walk_next then gives one after the other, and NULL after the last. */
void walk_read_names(struct walk *walk);
const char *walk_next(struct walk *walk);

/* Goes up again. Returns the name of what was left, in the directory where the walk is now; valid until
   the next call. */
const char *walk_leave(struct walk *walk);

/* Tells a failure about `name` in the directory where the walk is, or about that when it is empty. Where
   no walk is under way it is about the root. */
_Noreturn void walk_fail(const struct walk *walk, const char *name, uint32_t reason);
_Noreturn void walk_fail_errno(const struct walk *walk, const char *name);

/* Removes a directory with all in it. `path` is what errors call it; `force` makes directories writable
   that are the caller's own. */
void tree_remove(int directory, const char *name, const char *path, bool force);

#endif
