#include "kills.h"

#include <signal.h>
#include <stddef.h>
#include <time.h>
#include <unistd.h>

#include "identity.h"
#include "out.h"
#include "tree.h"

enum {
    /* About a millisecond of work, so that the other channels are served in between. */
    WALK_BUDGET = 32,
    /* Who needs longer gets no processor, and has to freeze the box before it can go on. */
    STARVED_MS = 4,
    /* One walk can miss a process that forks, ends and wraps around to a low pid meanwhile. */
    CLEAN_WALKS = 2,
    /* After kill(-1) the end of the last child usually tells more cheaply than a walk. */
    GRACE_MS = 4,
    PAUSE_FIRST_MS = 1,
    PAUSE_LONGEST_MS = 16,
    FULL_BUFFER_MS = 1,
    /* A channel that is not dead by then may be a fork bomb that gets more of the processors. */
    STRUGGLE_MS = 60,
    /* So many can take the processors away before a walk has met them. */
    CROWD = 128,
    STOPPED_MAX = 256,
    DOOMED_MAX = 4096, /* who comes later is met by the next walk */
};

static bool walking;

/* The plain mode knows processes by their parents, so nobody may die before the walk is over. */
static pid_t doomed[DOOMED_MAX];
static unsigned doomed_count;
/* Processes of other channels that have stopped themselves, as far as a walk has met them. */
static pid_t stopped_before[STOPPED_MAX];
static unsigned stopped_count;

static int64_t next_walk;
static int pause_ms;

static int64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static bool is_asked(const struct channel *channel) {
    return channel->state == CHANNEL_OPEN && channel->kill.asked > 0;
}

/* kill(-1) of process 1 is one step of the kernel: no fork can slip through. */
static bool strike_all(const struct channel *channel) {
    if (identity_is_plain() || !channel_is_alone(channel))
        return false;
    kill(-1, SIGKILL);
    return true;
}

static void answer(struct channel *channel, uint32_t remaining) {
    while (channel->kill.asked > 0 && out_has_control_room()) {
        out_u32(GUEST_KILLED, channel->id, remaining);
        channel->kill.asked--;
    }
}

static void answer_all(uint32_t remaining) {
    for (unsigned i = 0; i < channels_active_count; i++)
        if (is_asked(channels_active[i]))
            answer(channels_active[i], remaining);
}

/* The whole process group goes in one step, which a fork bomb does not outrun. A group never spans
   two channels: it cannot leave its session, and each command has its own. */
static void kill_with_group(pid_t pid) {
    pid_t group = getpgid(pid);
    if (group > 1)
        kill(-group, SIGKILL);
    kill(pid, SIGKILL);
}

static void hit(struct channel *channel, pid_t pid) {
    if (!identity_is_plain())
        kill_with_group(pid);
    else if (doomed_count < DOOMED_MAX)
        doomed[doomed_count++] = pid;
    channel->kill.alive += channel->kill.walked;
}

/* Somebody who has shaken off the marker has no right to go on: every KILL ends it. An orphan of the
   plain mode is only ended when it cannot be another channel's. */
static void hit_nobody(pid_t pid) {
    for (unsigned i = 0; i < channels_active_count; i++) {
        struct channel *channel = channels_active[i];
        if (is_asked(channel) && (!identity_is_plain() || channel_is_alone(channel)))
            hit(channel, pid);
    }
}

static void visit(const struct process *process) {
    if (process->slot == TREE_NOBODY)
        hit_nobody(process->pid);
    else if (is_asked(channel_in_slot(process->slot)))
        hit(channel_in_slot(process->slot), process->pid);
    else if (process->state == 'T' && stopped_count < STOPPED_MAX)
        stopped_before[stopped_count++] = process->pid;
}

static bool was_stopped_before(pid_t pid) {
    for (unsigned i = 0; i < stopped_count; i++)
        if (stopped_before[i] == pid)
            return true;
    return false;
}

static void kill_or_continue(const struct process *process) {
    if (process->slot == TREE_NOBODY || is_asked(channel_in_slot(process->slot)))
        kill(process->pid, SIGKILL);
    else if (!channel_in_slot(process->slot)->stopped && !was_stopped_before(process->pid))
        kill(process->pid, SIGCONT);
}

/* Many processes that fork get most of the processors, and more of them come than a walk can kill.
   So everybody is stopped for some milliseconds, in one step of the kernel as with kill(-1) above;
   then the walk is alone and nobody can fork away from it. */
static void kill_in_a_frozen_box(void) {
    kill(-1, SIGSTOP);
    tree_walk_at_once(kill_or_continue);
    walking = false;
    next_walk = now_ms() + pause_ms;
}

/* A crowd may take the processors away before a walk has met it, for seconds: so the freeze first. */
static void strike_first(struct channel *channel, int64_t now) {
    if (strike_all(channel)) {
        next_walk = now + GRACE_MS;
    } else if (!identity_is_plain()) {
        if (channel->pid > 0) {
            kill(-channel->pid, SIGKILL);
            kill(channel->pid, SIGKILL);
        }
        if ((channel->kill.frozen = tree_is_crowded(CROWD))) {
            stopped_count = 0;
            kill_in_a_frozen_box();
        }
    }
}

void kills_ask(struct channel *channel) {
    if (channel->kill.asked++ > 0)
        return;
    int64_t now = now_ms();
    channel->kill = (struct killing){.asked = 1, .deadline = now + KILL_PATIENCE_MS};
    pause_ms = PAUSE_FIRST_MS;
    next_walk = now;
    strike_first(channel, now);
}

/* Once for each KILL: when the box is too large for one step, for there may not be another one soon,
   and when the channel lives on all the same. */
static bool needs_freezing(int64_t now) {
    bool needed = false;
    for (unsigned i = 0; i < channels_active_count && !identity_is_plain(); i++) {
        struct channel *channel = channels_active[i];
        struct killing *k = &channel->kill;
        if (!is_asked(channel) || k->frozen || channel_is_alone(channel))
            continue;
        k->frozen = walking || now >= k->deadline - KILL_PATIENCE_MS + STRUGGLE_MS;
        needed = needed || k->frozen;
    }
    return needed;
}

static void begin_walk(void) {
    for (unsigned i = 0; i < channels_active_count; i++) {
        struct channel *channel = channels_active[i];
        if (!is_asked(channel))
            continue;
        strike_all(channel);
        channel->kill.walked = true;
        channel->kill.alive = 0;
    }
    doomed_count = 0;
    stopped_count = 0;
    walking = true;
    tree_walk_begin(WALK_KILL);
}

static void end_walk(int64_t now) {
    bool again = false;
    while (doomed_count > 0)
        kill_with_group(doomed[--doomed_count]);
    for (unsigned i = 0; i < channels_active_count; i++) {
        struct killing *k = &channels_active[i]->kill;
        if (!is_asked(channels_active[i]) || !k->walked)
            continue;
        k->remaining = k->alive;
        k->clean_walks = k->alive > 0 ? 0 : k->clean_walks + 1;
        if (k->clean_walks == CLEAN_WALKS)
            answer(channels_active[i], 0);
        again = again || k->clean_walks > 0;
    }
    walking = false;
    next_walk = again ? now : now + pause_ms;
    pause_ms = pause_ms < PAUSE_LONGEST_MS ? pause_ms * 2 : PAUSE_LONGEST_MS;
}

/* True when the walk is complete. */
static bool walk_on(int64_t now) {
    /* Between two steps children may be reaped, and their children become orphans of nobody. */
    if (identity_is_plain())
        return tree_walk_step(WALK_KILL, UINT32_MAX, visit);
    for (int i = 0; i < WALK_BUDGET && now_ms() - now < STARVED_MS; i++)
        if (tree_walk_step(WALK_KILL, 1, visit))
            return true;
    return false;
}

/* Answers those whose time is over, and finds the next deadline; 0 if nobody waits. What is not
   known to be dead counts as alive. */
static int64_t check_deadlines(int64_t now) {
    int64_t next = 0;
    for (unsigned i = 0; i < channels_active_count; i++) {
        struct channel *channel = channels_active[i];
        if (is_asked(channel) && now >= channel->kill.deadline)
            answer(channel, channel->kill.remaining > 0 ? channel->kill.remaining : 1);
        if (is_asked(channel) && (next == 0 || channel->kill.deadline < next))
            next = channel->kill.deadline;
    }
    return next;
}

static bool anybody_asked(void) {
    for (unsigned i = 0; i < channels_active_count; i++)
        if (is_asked(channels_active[i]))
            return true;
    return false;
}

int kills_advance(void) {
    if (!anybody_asked()) {
        walking = false;
        return -1;
    }
    if (channel_nobody_lives())
        answer_all(0);
    int64_t now = now_ms();
    if (!walking && now >= next_walk)
        begin_walk();
    if (walking && walk_on(now))
        end_walk(now);
    if (needs_freezing(now))
        kill_in_a_frozen_box();
    int64_t deadline = check_deadlines(now);
    if (deadline == 0)
        return -1;
    if (!out_has_control_room())
        return FULL_BUFFER_MS;
    if (walking)
        return 0;
    int64_t next = next_walk < deadline ? next_walk : deadline;
    return next > now ? (int)(next - now) : 0;
}
