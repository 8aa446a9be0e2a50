#include "stream.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "out.h"

enum {
    SCRATCH_SIZE = 65536,
    LAST_READS = 6, /* a full pipe is five frames at most, and the end is one more read */
    SMALL_READ = 32768,
    STREAK = 16,
    BUSY_PIPE_SIZE = 262144,
};

static unsigned char scratch[SCRATCH_SIZE];

static bool discards(const struct channel *channel) {
    return channel->closed || channel->state == CHANNEL_DRAIN;
}

int stream_events(const struct channel *channel, const struct stream *stream) {
    if (stream->fd < 0)
        return STREAM_IDLE;
    if (discards(channel))
        return POLLIN;
    if (stream->credit == 0)
        return stream->hung_up ? STREAM_IDLE : 0;
    return out_takes_data() ? POLLIN : STREAM_IDLE;
}

static void end_stream(struct stream *stream) {
    close(stream->fd);
    stream->fd = -1;
    stream->lingering = false;
}

/* Counts down what is the command's own. An empty pipe has none of it: somebody else has read it. */
static void note_own(struct stream *stream, ssize_t n) {
    if (n < 0 && errno == EAGAIN)
        stream->own = 0;
    else if (n > 0)
        stream->own = (uint32_t)n < stream->own ? stream->own - (uint32_t)n : 0;
}

/* True if there may be more to read. */
static bool note_read(struct stream *stream, ssize_t n) {
    note_own(stream, n);
    if (n > 0)
        return true;
    if (n == 0 || (errno != EAGAIN && errno != EINTR))
        end_stream(stream);
    return false;
}

static bool discard(struct stream *stream) {
    return note_read(stream, read(stream->fd, scratch, sizeof scratch));
}

/* A command that writes small pieces without a pause would wake the agent, and the agent the host, for
   each of them. It is given a larger pipe, and its output a moment to gather in it. */
static void note_size(struct stream *stream, ssize_t n, size_t room) {
    if (n <= 0) {
        stream->streak = 0;
        return;
    }
    if (n < SMALL_READ && stream->streak < STREAK && ++stream->streak == STREAK)
        (void)fcntl(stream->fd, F_SETPIPE_SZ, BUSY_PIPE_SIZE);
    /* As long as it goes on like this; what has gathered is taken at once, one frame after the other. */
    stream->resting = stream->streak == STREAK && (size_t)n < room;
}

static bool forward(struct channel *channel, struct stream *stream) {
    size_t room;
    unsigned char *place = out_data_begin(&room);
    if (place == NULL)
        return false;
    if (stream->credit < room)
        room = stream->credit;
    ssize_t n = read(stream->fd, place, room);
    note_size(stream, n, room);
    if (n > 0) {
        uint8_t number = (uint8_t)(stream - channel->out + 1);
        stream->credit -= (uint32_t)n;
        out_data_commit(channel->id, number, (uint32_t)n);
    }
    return note_read(stream, n);
}

/* Without credit nothing may be read, but the end of an empty pipe can still be told. */
static void look_for_end(struct stream *stream) {
    int left = 0;
    if (ioctl(stream->fd, FIONREAD, &left) == 0 && left > 0)
        stream->hung_up = true;
    else
        end_stream(stream);
}

void stream_serve(struct channel *channel, struct stream *stream, short events) {
    bool only_hung_up = (events & (POLLHUP | POLLIN)) == POLLHUP;
    if (discards(channel))
        discard(stream);
    else if (stream->credit == 0)
        look_for_end(stream);
    else if (only_hung_up && !channel->exited)
        /* Descriptors close a moment before the process can be waited for: its two EOF and its
           EXITED can be one write and wake the host once. */
        stream->lingering = true;
    else
        forward(channel, stream);
}

void stream_finish(struct channel *channel) {
    channel->just_exited = false;
    for (int i = 0; i < 2; i++) {
        struct stream *stream = &channel->out[i];
        stream->lingering = false;
        for (int reads = 0; reads < LAST_READS && stream->fd >= 0; reads++)
            if (stream->credit == 0 || discards(channel) || !forward(channel, stream))
                break;
    }
}

void stream_stop_lingering(struct channel *channel) {
    for (int i = 0; i < 2; i++)
        if (channel->out[i].lingering) {
            channel->out[i].lingering = false;
            discards(channel) ? discard(&channel->out[i]) : forward(channel, &channel->out[i]);
        }
}

const char *stream_credit(struct stream *stream, uint32_t bytes) {
    if (bytes == 0)
        return "CREDIT of 0 bytes";
    if (bytes > CREDIT_MAX - stream->credit)
        return "CREDIT above the limit";
    stream->credit += bytes;
    stream->hung_up = false;
    return NULL;
}
