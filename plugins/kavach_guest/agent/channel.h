/* The table of channels. A channel lives in a slot, and the slot's number marks its processes. */
#ifndef KAVACH_CHANNEL_H
#define KAVACH_CHANNEL_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/types.h>

#include "proto.h"
#include "request.h"

enum channel_state {
    CHANNEL_FREE,  /* no process carries the marker */
    CHANNEL_OPEN,  /* START has come, END has not been sent */
    CHANNEL_DRAIN, /* closed by the host and ended, but a process may still write */
    CHANNEL_STALE, /* ended, but processes that carry the marker may be alive */
};

/* Output, stdout or stderr. */
struct stream {
    int fd; /* -1 once it has ended */
    uint32_t credit;
    bool eof_sent;
    uint32_t own; /* bytes written before the exit of the first process, and not read yet */
    bool drained_sent;
    bool hung_up;   /* no writer is left, and the rest waits for credit */
    uint8_t streak; /* small reads in a row, each as soon as the last was done */
    bool resting;   /* for a moment, so that the next read is worth its while */
    bool lingering; /* no writer is left, but the process's end may come in a moment */
};

/* Stdin. Credit of the host, bytes held and bytes owed always add up to the initial credit. */
struct input {
    int fd; /* -1 without a reader: then what comes is thrown away */
    bool ended; /* by the host, or never asked for */
    uint32_t credit;
    uint32_t owed; /* taken, and not granted again yet */
    bool terminal; /* its end is typed, not closed */
    unsigned char last; /* what was typed last, 0 at first */
    unsigned char *held; /* what the pipe did not take; CREDIT_INITIAL bytes, or NULL */
    uint32_t held_from;
    uint32_t held_to;
};

struct killing {
    uint32_t asked; /* KILLs not answered yet */
    int64_t deadline;
    bool frozen; /* the box has been stopped for it once */
    bool walked; /* the walk under way began after the KILL */
    uint32_t alive; /* seen in this walk */
    uint32_t remaining; /* seen in the last complete walk */
    uint32_t clean_walks; /* complete walks in a row that saw nobody */
};

struct cpu {
    bool watched; /* the host has asked once */
    uint32_t asked; /* CPUs not answered yet */
    uint32_t counted; /* those that the walk under way is for */
    uint64_t sum_us; /* what it has found */
    uint64_t ended_us; /* used by those that were waited for, first process or orphan */
};

struct channel {
    enum channel_state state;
    uint32_t id;
    pid_t pid;
    bool exited;
    bool exited_sent;
    bool closed;
    bool terminal; /* its output is the agent's end of one */
    bool stopped; /* by a SIGNAL of the host */
    uint64_t label; /* kept when stale, for the processes that are left */
    bool just_exited; /* its last output has not been looked for yet */
    int wait_status;
    struct rusage usage;
    struct input in;
    struct stream out[2];
    struct killing kill;
    struct cpu cpu;
};

/* The channels that are open or drained, by ascending id. */
extern struct channel *channels_active[SLOTS];
extern unsigned channels_active_count;

/* START. Sends STARTED, or FAILED and END. NULL, or the rule that is broken. */
const char *channel_start(uint32_t id, unsigned char *payload, uint32_t length);

/* Opens a channel that has ended once more, for processes that it has left behind; NULL when there is
   none. */
struct channel *channel_reopen(uint32_t id);

/* Finds a channel for a frame of the host; *found is NULL for one that has ended. */
const char *channel_find(uint32_t id, struct channel **found);

/* Collects the processes that have ended, at most some hundred; true if there may be more. */
bool channel_reap(void);

/* Whether the last channel_reap saw that the agent has no child, and so no descendant. */
bool channel_nobody_lives(void);

/* Whether no other channel has, or may have, a live process. */
bool channel_is_alone(const struct channel *channel);

/* The slot whose first process is `pid` and not yet collected, or -1. */
int channel_slot_of_pid(pid_t pid);

/* Sends what has become due: EOF, EXITED, DRAINED, CREDIT, END. Ends channels. */
void channel_settle_all(void);

int channel_slot(const struct channel *channel);
struct channel *channel_in_slot(int slot);

#endif
