/* Whose process is it: walks over /proc that attribute every process of the box to a slot. */
#ifndef KAVACH_TREE_H
#define KAVACH_TREE_H

#include "procfs.h"

enum { TREE_NOBODY = NO_SLOT }; /* a process that carries no marker: it has tricked its way out of it */

/* Each walk has a place of its own in /proc, so that none disturbs another. */
enum tree_walk {
    WALK_KILL,    /* the living */
    WALK_AT_ONCE, /* the living, in one step */
    WALK_LIST,    /* zombies too, as the next one */
    WALK_CPU,
    WALKS,
};

/* Called for every process of a command. */
typedef void tree_visitor(const struct process *process);

/* In the plain mode there is no marker: asks for the slot whose first process is `pid`, or
   TREE_NOBODY. */
typedef int tree_slot_of_pid(pid_t pid);

/* Prepares walking. NULL, or what is missing. */
const char *tree_prepare(tree_slot_of_pid *slot_of_pid);

/* Starts a walk, forgetting one of its kind that is under way. */
void tree_walk_begin(enum tree_walk walk);

/* Visits at most `budget` more processes. True when the walk is complete. */
bool tree_walk_step(enum tree_walk walk, unsigned budget, tree_visitor *visit);

/* Visits all living processes in one step. */
void tree_walk_at_once(tree_visitor *visit);

/* Whether there are more processes than that, without looking at any. */
bool tree_is_crowded(unsigned limit);

/* The slot of one process, also of a zombie that nobody has waited for. */
int tree_slot_of(pid_t pid);

/* Ends every process of the box but the agent, as well as it can be done at once. */
void tree_kill_everything(void);

#endif
