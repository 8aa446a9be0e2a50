/* Starting a command: the only place that creates a process. */
#ifndef KAVACH_SPAWN_H
#define KAVACH_SPAWN_H

#include "request.h"

struct spawned {
    pid_t pid;       /* 0 when no process was created */
    int input;       /* -1 without a stdin that is fed */
    int output[2];   /* stdout, stderr; a terminal, and -1 */
    int stage;       /* STAGE_NONE if the program runs */
    int error;
};

/* Prepares what every start needs. NULL, or what is missing. */
const char *spawn_prepare(void);

/* Starts the command in `slot`; `channels_open` tells how many descriptors are in use. */
void spawn_command(const struct request *request, int slot, unsigned channels_open,
                   struct spawned *result);

#endif
