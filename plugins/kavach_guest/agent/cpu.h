/* CPU: how much time the processes of a channel have used, dead or alive. */
#ifndef KAVACH_CPU_H
#define KAVACH_CPU_H

#include "channel.h"

/* CPU of the host. */
void cpu_ask(struct channel *channel);

/* Whether what ends has to be looked at: some host means to ask. */
bool cpu_is_watched(void);

/* Adds the use of a process that has ended and has just been waited for. */
void cpu_add(struct channel *channel, const struct rusage *usage);

/* Does the next bit of work and answers. In how many milliseconds there is more to do, or -1. */
int cpu_advance(void);

#endif
