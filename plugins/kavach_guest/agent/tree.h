/* Whose process is it: walks over /proc that attribute every process of the box to a slot. */
#ifndef KAVACH_TREE_H
#define KAVACH_TREE_H

#include <stdbool.h>
#include <sys/types.h>

enum { TREE_NOBODY = -1 }; /* a process that carries no marker: it has tricked its way out of it */

/* Called for every process of a command, dead ones (zombies) excepted. */
typedef void tree_visitor(pid_t pid, int slot, bool stopped);

/* In the plain mode there is no marker: asks for the slot whose first process is `pid`, or
   TREE_NOBODY. */
typedef int tree_slot_of_pid(pid_t pid);

/* Prepares walking. NULL, or what is missing. */
const char *tree_prepare(tree_slot_of_pid *slot_of_pid);

/* Starts a walk, forgetting one that is under way. False without a usable /proc. */
bool tree_walk_begin(void);

/* Visits at most `budget` more processes. True when the walk is complete. */
bool tree_walk_step(unsigned budget, tree_visitor *visit);

/* Ends every process of the box but the agent, as well as it can be done at once. */
void tree_kill_everything(void);

#endif
