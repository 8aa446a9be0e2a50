#include "cpu.h"

#include <stddef.h>

#include "bytes.h"
#include "out.h"
#include "tree.h"

enum { WALK_BUDGET = 32, ANSWER_SIZE = 8, FULL_BUFFER_MS = 1 };

static bool walking;

void cpu_ask(struct channel *channel) {
    channel->cpu.watched = true;
    channel->cpu.asked++;
}

bool cpu_is_watched(void) {
    for (unsigned i = 0; i < channels_active_count; i++)
        if (channels_active[i]->state == CHANNEL_OPEN && channels_active[i]->cpu.watched)
            return true;
    return false;
}

static uint64_t microseconds(struct timeval t) {
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_usec;
}

void cpu_add(struct channel *channel, const struct rusage *usage) {
    channel->cpu.ended_us += microseconds(usage->ru_utime) + microseconds(usage->ru_stime);
}

static void add_living(const struct process *process) {
    struct consumption c;
    if (process->slot == TREE_NOBODY || channel_in_slot(process->slot)->cpu.counted == 0)
        return;
    if (procfs_read_consumption(process->pid, &c))
        channel_in_slot(process->slot)->cpu.sum_us += c.own_us + c.children_us;
}

/* Who ends from now on, having been counted alive, must not be counted again: the sum is of what
   had ended by now. At worst it lacks for once who ends before the walk gets there. */
static bool begin(void) {
    bool any = false;
    for (unsigned i = 0; i < channels_active_count; i++) {
        struct cpu *cpu = &channels_active[i]->cpu;
        cpu->counted = cpu->asked;
        cpu->sum_us = cpu->ended_us;
        any = any || cpu->counted > 0;
    }
    if (any)
        tree_walk_begin(WALK_CPU);
    return any;
}

static void answer(struct channel *channel) {
    unsigned char payload[ANSWER_SIZE];
    put_u64(payload, channel->cpu.sum_us);
    for (; channel->cpu.counted > 0 && out_has_control_room(); channel->cpu.counted--) {
        out_frame(GUEST_CPU, 0, channel->id, payload, sizeof payload);
        channel->cpu.asked--;
    }
}

static bool answer_all(void) {
    bool all = true;
    for (unsigned i = 0; i < channels_active_count; i++) {
        answer(channels_active[i]);
        all = all && channels_active[i]->cpu.counted == 0;
    }
    return all;
}

int cpu_advance(void) {
    static bool answering;
    if (!walking && !answering && !(walking = begin()))
        return -1;
    if (walking && !tree_walk_step(WALK_CPU, WALK_BUDGET, add_living))
        return 0;
    walking = false;
    answering = !answer_all();
    return answering ? FULL_BUFFER_MS : 0;
}
