/* Who the agent is, and who a command becomes. */
#ifndef KAVACH_IDENTITY_H
#define KAVACH_IDENTITY_H

#include <stdbool.h>

#include "request.h"

/* Takes the identity of process 1 of a box: a user of its own, hidden, three capabilities, no way
   to get more. NULL, or what is missing. */
const char *identity_enter_box(void);

/* Takes the identity for the plain mode. NULL, or what is missing. */
const char *identity_enter_plain(void);

bool identity_is_plain(void);

/* Creates things for `uid`, until acting as itself again. False if that is refused. */
bool identity_act_as(uid_t uid);
bool identity_act_as_self(void);

/* In the child, which shares the agent's memory: system calls only. 0 or an errno. */
int identity_become(const struct request *request, gid_t marker);

#endif
