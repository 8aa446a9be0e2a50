#include "channel.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bytes.h"
#include "cpu.h"
#include "host.h"
#include "identity.h"
#include "input.h"
#include "out.h"
#include "spawn.h"
#include "tree.h"

enum {
    REAP_AT_ONCE = 256,
    CENSUS_WALKS = 2,
    EXITED_SIZE = 32,
    KILOBYTE = 1024,
};

struct channel *channels_active[SLOTS];
unsigned channels_active_count;

static struct channel slots[SLOTS];
static uint32_t last_id;
static bool nobody_lives = true;

int channel_slot(const struct channel *channel) {
    return (int)(channel - slots);
}

struct channel *channel_in_slot(int slot) {
    return &slots[slot];
}

bool channel_nobody_lives(void) {
    return nobody_lives;
}

int channel_slot_of_pid(pid_t pid) {
    for (unsigned i = 0; i < channels_active_count; i++)
        if (pid > 0 && channels_active[i]->pid == pid)
            return channel_slot(channels_active[i]);
    return TREE_NOBODY;
}

bool channel_is_alone(const struct channel *channel) {
    for (int slot = 0; slot < SLOTS; slot++)
        if (slots[slot].state != CHANNEL_FREE && &slots[slot] != channel)
            return false;
    return true;
}

/* ---- slots ---- */

static bool census[SLOTS];

static void count_in_census(const struct process *process) {
    if (process->slot != TREE_NOBODY)
        census[process->slot] = true;
}

/* Learns which markers are still carried. One walk can miss a process that forks, ends and wraps
   around to a low pid meanwhile; it cannot do so twice in a row. */
static void free_stale_slots(void) {
    memset(census, 0, sizeof census);
    for (int walk = 0; walk < CENSUS_WALKS && !identity_is_plain(); walk++)
        tree_walk_at_once(count_in_census);
    for (int slot = 0; slot < SLOTS; slot++)
        if (slots[slot].state == CHANNEL_STALE && !census[slot])
            slots[slot].state = CHANNEL_FREE;
}

/* Takes the slots in turn, so that a marker rests as long as possible. */
static struct channel *next_free_slot(void) {
    static int last = SLOTS - 1;
    for (int i = 0; i < SLOTS; i++) {
        int slot = (last + 1 + i) % SLOTS;
        if (slots[slot].state == CHANNEL_FREE) {
            last = slot;
            return &slots[slot];
        }
    }
    return NULL;
}

static struct channel *take_slot(void) {
    struct channel *channel = next_free_slot();
    if (channel == NULL) {
        free_stale_slots();
        channel = next_free_slot();
    }
    return channel;
}

static void nobody_is_left(void) {
    nobody_lives = true;
    for (int slot = 0; slot < SLOTS; slot++)
        if (slots[slot].state == CHANNEL_STALE)
            slots[slot].state = CHANNEL_FREE;
}

/* ---- start ---- */

static const char *start_failed(uint32_t id, int stage, int error) {
    out_u32_pair(GUEST_FAILED, id, (uint32_t)stage, (uint32_t)error);
    out_empty(GUEST_END, 0, id);
    return NULL;
}

static void open_channel(struct channel *channel, uint32_t id, const struct request *request,
                         const struct spawned *s) {
    *channel = (struct channel){
        .state = CHANNEL_OPEN,
        .id = id,
        .label = request->label,
        .terminal = request->rows > 0,
        .pid = s->pid,
        .in = {.fd = s->input,
               .ended = s->input < 0,
               .credit = CREDIT_INITIAL,
               .terminal = request->rows > 0},
        .out = {{.fd = s->output[0], .credit = CREDIT_INITIAL},
                {.fd = s->output[1], .credit = CREDIT_INITIAL}},
    };
    channels_active[channels_active_count++] = channel;
    out_u32(GUEST_STARTED, id, (uint32_t)s->pid);
    if (s->input >= 0)
        out_hurry(); /* a command that waits for its input does not end soon */
}

const char *channel_start(uint32_t id, unsigned char *payload, uint32_t length) {
    if (id <= last_id)
        return "channel number used before";
    last_id = id;
    struct request request;
    if (request_parse(payload, length, &request) != 0)
        return start_failed(id, STAGE_REQUEST, EINVAL);
    struct channel *channel = take_slot();
    if (channel == NULL)
        return start_failed(id, STAGE_RESOURCES, EAGAIN);
    struct spawned s;
    spawn_command(&request, channel_slot(channel), channels_active_count, &s);
    if (s.pid != 0)
        nobody_lives = false;
    if (s.stage == STAGE_NONE) {
        open_channel(channel, id, &request, &s);
        return NULL;
    }
    if (s.pid != 0)
        *channel = (struct channel){.state = CHANNEL_STALE}; /* the child that failed is dying */
    return start_failed(id, s.stage, s.error);
}

const char *channel_find(uint32_t id, struct channel **found) {
    *found = NULL;
    if (id > last_id)
        return "channel number not used yet";
    unsigned from = 0, to = channels_active_count;
    while (from < to) {
        unsigned middle = from + (to - from) / 2;
        if (channels_active[middle]->id < id)
            from = middle + 1;
        else
            to = middle;
    }
    if (from < channels_active_count && channels_active[from]->id == id &&
        channels_active[from]->state == CHANNEL_OPEN)
        *found = channels_active[from];
    return NULL;
}

/* The active channels stay in order. */
static void activate(struct channel *channel) {
    unsigned place = channels_active_count++;
    while (place > 0 && channels_active[place - 1]->id > channel->id) {
        channels_active[place] = channels_active[place - 1];
        place--;
    }
    channels_active[place] = channel;
}

struct channel *channel_reopen(uint32_t id) {
    for (int slot = 0; slot < SLOTS; slot++) {
        struct channel *channel = &slots[slot];
        if (channel->id != id || (channel->state != CHANNEL_STALE && channel->state != CHANNEL_DRAIN))
            continue;
        if (channel->state == CHANNEL_STALE)
            activate(channel);
        channel->state = CHANNEL_OPEN;
        channel->in.ended = true; /* nothing is granted any more */
        return channel;
    }
    return NULL;
}

/* ---- exit ---- */

/* Who is left behind may write on; what is in the pipe now is the command's own. */
static void note_own_output(struct stream *stream) {
    int left = 0;
    if (stream->fd >= 0 && ioctl(stream->fd, FIONREAD, &left) == 0 && left > 0)
        stream->own = (uint32_t)left;
}

static void note_exit(struct channel *channel, int status, const struct rusage *usage) {
    channel->exited = true;
    channel->just_exited = true;
    channel->pid = 0; /* the number may be another process's from now on */
    channel->wait_status = status;
    channel->usage = *usage;
    note_own_output(&channel->out[0]);
    note_own_output(&channel->out[1]);
}

/* Whose an orphan was that process 1 has inherited, its marker alone tells, and only until it has
   been waited for. Nobody looks while nobody asks. */
static int slot_of_the_next_orphan(void) {
    siginfo_t next = {0};
    if (!cpu_is_watched() || waitid(P_ALL, 0, &next, WEXITED | WNOHANG | WNOWAIT) != 0 ||
        next.si_pid == 0 || channel_slot_of_pid(next.si_pid) != TREE_NOBODY)
        return TREE_NOBODY;
    return tree_slot_of(next.si_pid);
}

static pid_t reap_one(void) {
    int status;
    struct rusage usage;
    int orphans = slot_of_the_next_orphan();
    pid_t pid = wait4(-1, &status, WNOHANG, &usage);
    if (pid <= 0)
        return pid;
    int slot = channel_slot_of_pid(pid);
    if (slot != TREE_NOBODY)
        note_exit(&slots[slot], status, &usage);
    else
        slot = orphans;
    if (slot != TREE_NOBODY)
        cpu_add(&slots[slot], &usage);
    return pid;
}

bool channel_reap(void) {
    for (int i = 0; i < REAP_AT_ONCE; i++) {
        pid_t pid = reap_one();
        if (pid < 0 && errno == ECHILD)
            nobody_is_left();
        if (pid <= 0)
            return false;
    }
    return true;
}

static uint64_t microseconds(struct timeval t) {
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_usec;
}

static void send_exited(struct channel *channel) {
    int status = channel->wait_status;
    bool signalled = WIFSIGNALED(status);
    unsigned char payload[EXITED_SIZE];
    put_u32(payload, signalled ? 1 : 0);
    put_u32(payload + 4, (uint32_t)(signalled ? WTERMSIG(status) : WEXITSTATUS(status)));
    put_u64(payload + 8, microseconds(channel->usage.ru_utime));
    put_u64(payload + 16, microseconds(channel->usage.ru_stime));
    put_u64(payload + 24, (uint64_t)channel->usage.ru_maxrss * KILOBYTE);
    out_frame(GUEST_EXITED, 0, channel->id, payload, sizeof payload);
    channel->exited_sent = true;
}

/* ---- what is due ---- */

static bool send_eofs(struct channel *channel) {
    bool all = true;
    for (uint8_t i = 0; i < 2; i++) {
        struct stream *stream = &channel->out[i];
        if (stream->fd < 0 && !stream->eof_sent && !channel->closed) {
            out_empty(GUEST_EOF, (uint8_t)(i + 1), channel->id);
            stream->eof_sent = true;
        }
        all = all && (stream->eof_sent || channel->closed);
    }
    return all;
}

/* The host waits for what is the command's own, however long that takes, and hardly for the rest. */
static void send_drained(struct channel *channel) {
    for (uint8_t i = 0; i < 2; i++) {
        struct stream *stream = &channel->out[i];
        if (stream->fd < 0 || stream->own > 0 || stream->drained_sent || channel->closed)
            continue;
        out_empty(GUEST_DRAINED, (uint8_t)(i + 1), channel->id);
        stream->drained_sent = true;
    }
}

static bool is_drained(const struct channel *channel) {
    return channel->out[0].fd < 0 && channel->out[1].fd < 0;
}

static void end_channel(struct channel *channel) {
    out_empty(GUEST_END, 0, channel->id);
    input_close(&channel->in);
    channel->state = CHANNEL_DRAIN;
}

/* True while the channel stays active. */
static bool settle(struct channel *channel) {
    if (channel->state == CHANNEL_OPEN && out_has_control_room()) {
        bool silent = send_eofs(channel);
        if (channel->exited && !channel->exited_sent)
            send_exited(channel);
        if (channel->exited_sent && host_knows_drained())
            send_drained(channel);
        input_grant(&channel->in, channel->id);
        if (silent && channel->exited_sent && channel->kill.asked == 0 &&
            channel->cpu.asked == 0)
            end_channel(channel);
    }
    if (channel->state != CHANNEL_DRAIN || !is_drained(channel))
        return true;
    channel->state = nobody_lives ? CHANNEL_FREE : CHANNEL_STALE;
    return false;
}

void channel_settle_all(void) {
    unsigned kept = 0;
    for (unsigned i = 0; i < channels_active_count; i++)
        if (settle(channels_active[i]))
            channels_active[kept++] = channels_active[i];
    channels_active_count = kept;
}
