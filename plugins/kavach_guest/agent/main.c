/* The guest agent: process 1 of every box. See docs/reference/guest-protocol.md. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "bytes.h"
#include "channel.h"
#include "cpu.h"
#include "files.h"
#include "host.h"
#include "identity.h"
#include "input.h"
#include "kills.h"
#include "listing.h"
#include "out.h"
#include "spawn.h"
#include "stream.h"
#include "tree.h"

enum {
    EXIT_BROKEN = 2,
    LAST_SIGNAL = 64,
    FIRST_FREE_DESCRIPTOR = 3,
    HOST_IN = 0, /* the first places in the poll table; the channels' follow */
    HOST_OUT = 1,
    CHILDREN = 2,
    FIXED_PLACES = 3,
    PLACES = FIXED_PLACES + 3 * SLOTS,
    LINGER_MS = 1,
    LINGER_ROUNDS = 16,
    HOLD_MS = 1,
    REST_NS = 100000,
};

/* Not a handler and ppoll: with descriptors always ready, a pending signal would never be seen. */
static int children = -1;

/* What a place in the poll table is about: a stream of a channel, or (NULL) its stdin. */
static struct pollfd polled[PLACES];
static struct {
    struct channel *channel;
    struct stream *stream;
} subjects[PLACES];
static nfds_t places;
static bool rests; /* some stream is left out of the table for a moment */

static _Noreturn void refuse(const char *problem) {
    static const char name[] = "kavach-agent: ";
    char line[ERROR_MAX];
    size_t length = strlen(problem);
    memcpy(line, name, sizeof name - 1);
    memcpy(line + sizeof name - 1, problem, length);
    length += sizeof name - 1;
    line[length++] = '\n';
    if (write(STDERR_FILENO, line, length) < 0)
        _exit(EXIT_BROKEN);
    _exit(EXIT_BROKEN);
}

static _Noreturn void end_box(void) {
    tree_kill_everything();
    _exit(0);
}

static _Noreturn void end_box_because(const char *problem) {
    tree_kill_everything();
    out_last_words(problem);
    _exit(EXIT_BROKEN);
}

/* ---- the start ---- */

/* Commands get exactly 0, 1 and 2; whatever else a runtime left open is closed here, once. gVisor
   came to have close_range late: before that, /proc says what is open. */
static void close_foreign_descriptors(void) {
    if (syscall(SYS_close_range, FIRST_FREE_DESCRIPTOR, ~0U, 0) == 0)
        return;
    DIR *open_descriptors = opendir("/proc/self/fd");
    if (open_descriptors == NULL)
        refuse("cannot tell which descriptors are open");
    for (struct dirent *entry; (entry = readdir(open_descriptors)) != NULL;) {
        int fd = atoi(entry->d_name);
        if (fd >= FIRST_FREE_DESCRIPTOR && fd != dirfd(open_descriptors))
            close(fd);
    }
    closedir(open_descriptors);
}

static bool make_nonblocking(int fd) {
    int flags = fcntl(fd, F_GETFL);
    return flags >= 0 && fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0;
}

/* SIGPIPE is blocked, not ignored: ignoring is inherited by commands and would cost each a call
   to undo. Everything else is default, also what a runtime may have left ignored. */
static const char *set_signals(void) {
    for (int number = 1; number <= LAST_SIGNAL; number++)
        signal(number, SIG_DFL);
    struct sigaction action = {.sa_handler = SIG_DFL, .sa_flags = SA_NOCLDSTOP};
    sigaction(SIGCHLD, &action, NULL);
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGCHLD);
    children = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
    sigaddset(&signals, SIGPIPE);
    sigprocmask(SIG_SETMASK, &signals, NULL);
    return children < 0 ? "cannot watch for children" : NULL;
}

static void say_hello(void) {
    unsigned char payload[HELLO_SIZE] = {'K', 'V', 'C', 'H'};
    put_u16(payload + 4, PROTO_MAJOR);
    put_u16(payload + 6, PROTO_MINOR);
    out_frame(GUEST_HELLO, 0, 0, payload, sizeof payload);
}

static void set_up(bool plain) {
    if (fcntl(STDERR_FILENO, F_GETFD) < 0 || !make_nonblocking(STDIN_FILENO) ||
        !make_nonblocking(STDOUT_FILENO))
        refuse("descriptors 0, 1 and 2 have to be open");
    close_foreign_descriptors();
    const char *problem = set_signals();
    if (problem == NULL)
        problem = spawn_prepare();
    if (problem == NULL)
        problem = tree_prepare(channel_slot_of_pid);
    if (problem == NULL)
        problem = plain ? identity_enter_plain() : identity_enter_box();
    if (problem != NULL)
        refuse(problem);
    say_hello();
}

/* ---- the loop ---- */

static void add_place(int fd, int events, struct channel *channel, struct stream *stream) {
    polled[places] = (struct pollfd){.fd = fd, .events = (short)events};
    subjects[places].channel = channel;
    subjects[places].stream = stream;
    places++;
}

/* True if a stream waits for the exit of its process; then the other one waits too. */
static bool add_channel(struct channel *channel) {
    if (input_waits(&channel->in))
        add_place(channel->in.fd, POLLOUT, channel, NULL);
    if (channel->out[0].lingering || channel->out[1].lingering)
        return true;
    for (int i = 0; i < 2; i++) {
        struct stream *stream = &channel->out[i];
        int events = stream->resting ? STREAM_IDLE : stream_events(channel, stream);
        rests = rests || stream->resting;
        stream->resting = false;
        if (events != STREAM_IDLE)
            add_place(stream->fd, events, channel, stream);
    }
    return false;
}

/* Each round begins with another channel, so that none is always last. */
static bool build_places(bool holds) {
    static unsigned first;
    bool lingers = false;
    places = 0;
    rests = false;
    add_place(STDIN_FILENO, host_is_held() ? 0 : POLLIN, NULL, NULL);
    add_place(STDOUT_FILENO, out_pending() > 0 && !holds ? POLLOUT : 0, NULL, NULL);
    add_place(children, POLLIN, NULL, NULL);
    first++;
    for (unsigned i = 0; i < channels_active_count; i++)
        if (add_channel(channels_active[(first + i) % channels_active_count]))
            lingers = true;
    return lingers;
}

static void serve_host(void) {
    short events = polled[HOST_IN].revents;
    if (polled[HOST_OUT].revents & (POLLERR | POLLNVAL))
        end_box();
    if (events & POLLIN) {
        if (!host_read())
            end_box();
    } else if (events != 0) {
        end_box(); /* also while frames are held: who sent them is gone */
    }
    const char *problem = host_obey();
    if (problem != NULL)
        end_box_because(problem);
}

static void serve_channels(void) {
    for (nfds_t i = FIXED_PLACES; i < places; i++) {
        struct channel *channel = subjects[i].channel;
        struct stream *stream = subjects[i].stream;
        if (polled[i].revents == 0) {
            if (stream != NULL && stream->streak > 0)
                stream->streak--;
            continue;
        }
        if (stream == NULL) {
            if (input_waits(&channel->in))
                input_continue(&channel->in);
        } else if (stream->fd >= 0) {
            stream_serve(channel, stream, polled[i].revents);
        }
    }
    for (unsigned i = 0; i < channels_active_count; i++)
        if (channels_active[i]->just_exited)
            stream_finish(channels_active[i]);
}

/* Streams linger until their process has exited, or nothing has happened for a moment. */
static void stop_lingering(bool nothing_happened) {
    static unsigned rounds;
    if (!nothing_happened && ++rounds < LINGER_ROUNDS)
        return;
    rounds = 0;
    for (unsigned i = 0; i < channels_active_count; i++)
        stream_stop_lingering(channels_active[i]);
}

/* True if there may be more to reap. */
static bool reap(void) {
    struct signalfd_siginfo ignored;
    if (polled[CHILDREN].revents != 0 && read(children, &ignored, sizeof ignored) < 0 &&
        errno != EAGAIN)
        end_box_because("cannot read about children");
    return channel_reap();
}

static int soonest(int a, int b) {
    if (a < 0 || b < 0)
        return a < 0 ? b : a;
    return a < b ? a : b;
}

/* A STARTED waits a moment for the end of a very short command: then all is one write, and wakes
   the host once. True if it waits now. */
static bool flush_or_hold(void) {
    static bool held;
    held = !held && out_pending() > 0 && !out_is_urgent();
    if (!held && !out_flush())
        end_box();
    return held;
}

static int wait_for_events(int timeout) {
    const struct timespec rest = {.tv_nsec = REST_NS};
    return rests && timeout != 0 ? ppoll(polled, places, &rest, NULL) : poll(polled, places, timeout);
}

static _Noreturn void run(void) {
    bool more_to_reap = false;
    int timeout = -1;
    for (;;) {
        bool holds = flush_or_hold();
        bool lingers = build_places(holds);
        if (holds)
            timeout = soonest(timeout, HOLD_MS);
        if (lingers)
            timeout = soonest(timeout, LINGER_MS);
        if (more_to_reap)
            timeout = 0;
        int ready = wait_for_events(timeout);
        if (ready < 0)
            end_box_because("poll fails");
        if (more_to_reap || polled[CHILDREN].revents != 0)
            more_to_reap = reap();
        serve_host();
        serve_channels();
        if (lingers)
            stop_lingering(ready == 0);
        timeout = soonest(kills_advance(), soonest(listing_advance(), cpu_advance()));
        channel_settle_all();
    }
}

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "--files") == 0)
        return files_main(argc, argv);
    bool plain = argc == 2 && strcmp(argv[1], "--plain") == 0;
    if (argc != 1 && !plain)
        refuse("the only argument is --plain");
    set_up(plain);
    run();
}
