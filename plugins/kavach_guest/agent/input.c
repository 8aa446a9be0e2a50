#include "input.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "out.h"
#include "terminal.h"

/* A quarter of the window: the host never runs dry, and small inputs need no CREDIT at all. */
enum { GRANT_FROM = CREDIT_INITIAL / 4 };

bool input_waits(const struct input *in) {
    return in->fd >= 0 && in->held_to > in->held_from;
}

void input_close(struct input *in) {
    free(in->held);
    in->held = NULL;
    in->held_from = in->held_to = 0;
    if (in->fd >= 0)
        close(in->fd);
    in->fd = -1;
}

/* Writes what the pipe takes. A command that has closed its stdin takes everything: its input is
   thrown away and the host goes on, as with any pipe whose reader is gone. */
static uint32_t offer(struct input *in, const unsigned char *data, uint32_t length) {
    ssize_t n = write(in->fd, data, length);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (n < 0) {
        close(in->fd);
        in->fd = -1;
        return length;
    }
    if (n > 0)
        in->last = data[n - 1];
    return (uint32_t)n;
}

/* Room is certain: held bytes are never more than the credit that was granted. */
static bool hold(struct input *in, const unsigned char *data, uint32_t length) {
    if (in->held == NULL)
        in->held = malloc(CREDIT_INITIAL);
    if (in->held == NULL)
        return false;
    if (CREDIT_INITIAL - in->held_to < length) {
        memmove(in->held, in->held + in->held_from, in->held_to - in->held_from);
        in->held_to -= in->held_from;
        in->held_from = 0;
    }
    memcpy(in->held + in->held_to, data, length);
    in->held_to += length;
    return true;
}

/* All that came has been taken. Closing would not tell a terminal's reader. */
static void finish(struct input *in) {
    if (in->terminal && in->fd >= 0) {
        unsigned char typed[TERMINAL_END_MAX];
        uint32_t length = (uint32_t)terminal_end_of_input(in->fd, in->last, typed);
        uint32_t taken = offer(in, typed, length);
        in->terminal = false;
        if (taken < length && hold(in, typed + taken, length - taken))
            return;
    }
    input_close(in);
}

const char *input_take(struct input *in, const unsigned char *data, uint32_t length) {
    if (in->ended)
        return "DATA for a stdin that has ended";
    if (length > in->credit)
        return "DATA beyond the credit";
    in->credit -= length;
    uint32_t taken = length;
    if (in->fd >= 0)
        taken = input_waits(in) ? 0 : offer(in, data, length);
    in->owed += taken;
    if (taken < length && !hold(in, data + taken, length - taken))
        return "out of memory";
    return NULL;
}

void input_continue(struct input *in) {
    uint32_t taken = offer(in, in->held + in->held_from, in->held_to - in->held_from);
    in->owed += taken;
    in->held_from += taken;
    if (in->held_from == in->held_to)
        in->held_from = in->held_to = 0;
    if (in->ended && !input_waits(in))
        finish(in);
}

const char *input_end(struct input *in) {
    if (in->ended)
        return "EOF for a stdin that has ended";
    in->ended = true;
    if (!input_waits(in))
        finish(in);
    return NULL;
}

void input_grant(struct input *in, uint32_t channel) {
    if (in->ended || in->owed < GRANT_FROM)
        return;
    out_u32(GUEST_CREDIT, channel, in->owed);
    in->credit += in->owed;
    in->owed = 0;
}
