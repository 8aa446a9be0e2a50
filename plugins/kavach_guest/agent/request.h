/* The request in a START frame. */
#ifndef KAVACH_REQUEST_H
#define KAVACH_REQUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "proto.h"

struct request {
    char **argv; /* both end in NULL and point into the frame */
    char **envp;
    const char *cwd;
    uid_t uid;
    gid_t gid;
    gid_t groups[GROUPS_MAX + 1]; /* the last place is for the marker */
    size_t group_count;
    mode_t umask;
    bool stdin_pipe;
    bool tool; /* the agent's own program, whatever argv[0] says */
    uint64_t label;
    uint16_t rows; /* of its terminal; 0 without one */
    uint16_t columns;
};

/* Parses the payload in place. 0 or EINVAL. The result is valid until the next call. */
int request_parse(unsigned char *payload, uint32_t length, struct request *request);

#endif
