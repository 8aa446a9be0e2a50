/* KILL: ends every process of a channel, wherever it has moved, without stopping anybody else. */
#ifndef KAVACH_KILLS_H
#define KAVACH_KILLS_H

#include "channel.h"

/* KILL of the host. */
void kills_ask(struct channel *channel);

/* Does the next bit of work and answers what is decided. In how many milliseconds there is more
   to do, or -1. */
int kills_advance(void);

#endif
