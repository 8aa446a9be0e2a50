/* Where the contents of a file go: a hidden file that takes the place of the old one when it is
   complete, or the old one itself where that cannot be. */
#ifndef KAVACH_FILES_TARGET_H
#define KAVACH_FILES_TARGET_H

#include <limits.h>
#include <stdbool.h>
#include <sys/types.h>

#include "files_walk.h"

#define HIDDEN_NAME_SIZE 32
#define MODE_AS_IT_IS ((mode_t)-1) /* an old file keeps its mode, a new one gets 0644 */

/* A name in a directory. */
struct place {
    int directory;
    char name[NAME_MAX + 1];
};

struct target {
    struct place place;
    const struct walk *walk; /* for errors */
    char hidden[HIDDEN_NAME_SIZE]; /* empty when written in place */
    int fd;
};

/* Opens the directory of `path`, following links. All here fail by wire_fail. */
void place_open(struct place *place, const char *path);

/* Makes the directories above `path` that are missing. */
void make_parents(const char *path);

/* Makes up a name that nobody else has. */
void hidden_name(char name[HIDDEN_NAME_SIZE]);

/* Opens the root of a walk that has not begun. */
void target_open(struct target *target, const struct walk *walk, mode_t mode, bool append);

/* Opens `name` in the directory where the walk is: a hidden file that takes the place of whatever is
   there, or with `is_new` a file that must not be there yet, which nobody removes on failure. */
void target_open_in(struct target *target, const struct walk *walk, const char *name, mode_t mode,
                    bool is_new);

/* Writes DATA records until a record of another type comes, and returns that type. */
int target_receive(struct target *target);

/* Puts what was written in its place. */
void target_commit(struct target *target);

#endif
