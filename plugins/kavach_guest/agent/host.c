#include "host.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "bytes.h"
#include "channel.h"
#include "cpu.h"
#include "frame.h"
#include "input.h"
#include "kills.h"
#include "listing.h"
#include "out.h"
#include "stream.h"
#include "terminal.h"
#include "tree.h"

enum { CAPACITY = HEADER_SIZE + START_MAX, SIGNAL_MAX = 64, MINOR_OF_DRAINED = 2 };

static unsigned char buffer[CAPACITY];
static size_t filled;
static bool greeted;
static uint16_t minor;
static bool held;

bool host_knows_drained(void) {
    return minor >= MINOR_OF_DRAINED;
}

bool host_is_held(void) {
    return held;
}

bool host_read(void) {
    ssize_t n = read(STDIN_FILENO, buffer + filled, sizeof buffer - filled);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR;
    filled += (size_t)n;
    return n > 0;
}

static const char *obey_hello(const struct frame *frame) {
    if (greeted)
        return "HELLO twice";
    if (memcmp(frame->payload, "KVCH", 4) != 0)
        return "HELLO without the magic";
    if (get_u16(frame->payload + 4) != PROTO_MAJOR)
        return "another major version";
    minor = get_u16(frame->payload + 6);
    greeted = true;
    return NULL;
}

/* The first process only: once it has been waited for, its number may be another's. */
static const char *obey_signal(struct channel *channel, const unsigned char *payload) {
    int number = payload[0];
    bool group = payload[1] == 1;
    if (number < 1 || number > SIGNAL_MAX || payload[1] > 1)
        return "bad signal or scope";
    if (channel == NULL || channel->pid == 0)
        return NULL;
    kill(group ? -channel->pid : channel->pid, number);
    if (number == SIGSTOP || number == SIGTSTP || number == SIGCONT)
        channel->stopped = number != SIGCONT;
    return NULL;
}

/* The host asks after END, so nothing else is answered on this channel. */
static void obey_kill_rest(uint32_t id) {
    struct channel *channel = channel_reopen(id);
    if (channel != NULL) {
        kills_ask(channel);
        return;
    }
    out_u32(GUEST_KILLED, id, 0);
    out_empty(GUEST_END, 0, id);
}

static int resized_slot;

static void tell_of_size(const struct process *process) {
    if (process->slot == resized_slot)
        kill(process->pid, SIGWINCH);
}

static const char *obey_resize(struct channel *channel, const unsigned char *payload) {
    uint16_t rows = get_u16(payload), columns = get_u16(payload + 2);
    if (rows == 0 || columns == 0)
        return "a terminal without a size";
    if (channel == NULL)
        return NULL;
    if (!channel->terminal)
        return "RESIZE without a terminal";
    if (channel->out[0].fd < 0 || terminal_resize(channel->out[0].fd, rows, columns))
        return NULL;
    /* All of them, as nothing says who is in the foreground; who does not care ignores it. */
    resized_slot = channel_slot(channel);
    tree_walk_at_once(tell_of_size);
    return NULL;
}

static const char *obey_for_channel(const struct frame *frame, struct channel *channel) {
    switch (frame->type) {
    case HOST_DATA:
        return input_take(&channel->in, frame->payload, frame->length);
    case HOST_EOF:
        return input_end(&channel->in);
    case HOST_CREDIT:
        return stream_credit(&channel->out[frame->stream - 1], get_u32(frame->payload));
    case HOST_KILL:
        kills_ask(channel);
        return NULL;
    case HOST_CPU:
        cpu_ask(channel);
        return NULL;
    default:
        channel->closed = true;
        return NULL;
    }
}

static const char *obey(const struct frame *frame) {
    if (frame->type == HOST_HELLO)
        return obey_hello(frame);
    if (!greeted)
        return "the first frame is not HELLO";
    if (frame->type == HOST_PING) {
        out_frame(GUEST_PONG, 0, 0, frame->payload, frame->length);
        return NULL;
    }
    if (frame->type == HOST_PROCESSES)
        return listing_ask();
    if (frame->type == HOST_START)
        return channel_start(frame->channel, frame->payload, frame->length);
    struct channel *channel;
    const char *problem = channel_find(frame->channel, &channel);
    if (problem != NULL)
        return problem;
    if (frame->type == HOST_KILL_REST) {
        if (channel == NULL)
            obey_kill_rest(frame->channel);
        return channel == NULL ? NULL : "KILL_REST of a channel that has not ended";
    }
    if (frame->type == HOST_SIGNAL)
        return obey_signal(channel, frame->payload);
    if (frame->type == HOST_RESIZE)
        return obey_resize(channel, frame->payload);
    return channel == NULL ? NULL : obey_for_channel(frame, channel);
}

const char *host_obey(void) {
    size_t used = 0;
    const char *problem = NULL;
    held = false;
    while (problem == NULL && filled - used >= HEADER_SIZE) {
        struct frame frame;
        held = !out_has_control_room();
        problem = frame_decode(buffer + used, &frame);
        if (held || problem != NULL || filled - used - HEADER_SIZE < frame.length)
            break;
        problem = obey(&frame);
        used += HEADER_SIZE + frame.length;
    }
    if (used > 0)
        memmove(buffer, buffer + used, filled - used);
    filled -= used;
    return problem;
}
