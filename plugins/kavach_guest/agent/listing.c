#include "listing.h"

#include <stdbool.h>
#include <string.h>

#include "bytes.h"
#include "channel.h"
#include "out.h"
#include "tree.h"

enum {
    WALK_BUDGET = 32, /* about a millisecond of work, as for a kill; fits what takes_data leaves */
    FIXED_SIZE = 41,
};

static bool listing;

const char *listing_ask(void) {
    if (listing)
        return "PROCESSES before LISTED";
    listing = true;
    tree_walk_begin(WALK_LIST);
    return NULL;
}

static uint64_t label_of(int slot) {
    if (slot == TREE_NOBODY || channel_in_slot(slot)->state == CHANNEL_FREE)
        return 0;
    return channel_in_slot(slot)->label;
}

static void tell(const struct process *process) {
    unsigned char payload[FIXED_SIZE + NAME_MAX_BYTES];
    struct consumption c;
    if (!procfs_read_consumption(process->pid, &c))
        return;
    put_u32(payload, (uint32_t)process->pid);
    put_u32(payload + 4, (uint32_t)process->parent);
    put_u32(payload + 8, process->uid);
    put_u32(payload + 12, process->threads);
    put_u64(payload + 16, label_of(process->slot));
    put_u64(payload + 24, c.own_us);
    put_u64(payload + 32, c.rss_bytes);
    payload[40] = (unsigned char)process->state;
    memcpy(payload + FIXED_SIZE, c.name, c.name_length);
    out_frame(GUEST_PROCESS, 0, 0, payload, (uint32_t)(FIXED_SIZE + c.name_length));
}

int listing_advance(void) {
    /* As with output, a slow host is waited for; what it asks meanwhile can still be answered. */
    if (!listing || !out_takes_data())
        return -1;
    if (!tree_walk_step(WALK_LIST, WALK_BUDGET, tell))
        return 0;
    listing = false;
    out_empty(GUEST_LISTED, 0, 0);
    return -1;
}
