/* Fuzzing of everything that reads the host's bytes: frames, requests, channels, credit, output.

   The real agent code runs on real pipes; only processes are pretended (spawn, identity and tree
   are replaced below). LLVMFuzzerTestOneInput is for a fuzzer; main is a deterministic driver:

       cc -fsanitize=address,undefined fuzz_frames.c frame.c request.c channel.c input.c stream.c \
          out.c kills.c cpu.c listing.c terminal.c -o fuzz && ./fuzz LIVES [SEED] */
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bytes.h"
#include "channel.h"
#include "host.c" /* for its state: after a broken rule the next input needs a fresh host */
#include "identity.h"
#include "kills.h"
#include "out.h"
#include "spawn.h"
#include "stream.h"
#include "tree.h"

enum { INPUT_MAX = 1048576, FRAMES_MAX = 24, ROUNDS_PER_INPUT = 6, INPUTS_PER_LIFE = 50, FAKE_PID = 0x3fffff00 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* ---- pretended processes ---- */

/* The plain mode never uses kill(-1); the process ids below do not exist. */
bool identity_is_plain(void) {
    return true;
}

void tree_walk_begin(enum tree_walk walk) {
    (void)walk;
}

bool tree_walk_step(enum tree_walk walk, unsigned budget, tree_visitor *visit) {
    static int slot;
    slot = (slot + (int)walk + (int)(budget % 2)) % SLOTS;
    visit(&(struct process){.pid = FAKE_PID, .slot = slot - 1, .state = 'T', .alive = true});
    return slot % 3 == 0;
}

void tree_walk_at_once(tree_visitor *visit) {
    tree_walk_step(WALK_AT_ONCE, 1, visit);
}

bool tree_is_crowded(unsigned limit) {
    return limit == 0;
}

int tree_slot_of(pid_t pid) {
    return pid % SLOTS;
}

bool procfs_read_consumption(pid_t pid, struct consumption *c) {
    *c = (struct consumption){.own_us = (uint64_t)pid, .name_length = NAME_MAX_BYTES};
    return true;
}

static int readers[SLOTS];

void spawn_command(const struct request *r, int slot, unsigned channels_open, struct spawned *s) {
    int pair[2];
    size_t length = strlen(r->cwd);
    for (char **text = r->argv; *text != NULL; text++)
        length += strlen(*text);
    for (char **text = r->envp; *text != NULL; text++)
        length += strlen(*text);
    *s = (struct spawned){.input = -1, .output = {-1, -1}};
    if (length % 5 == 4 || channels_open > SLOTS) {
        s->stage = STAGE_PROGRAM;
        s->error = 2;
        return;
    }
    s->pid = FAKE_PID + slot % 200;
    for (int i = 0; i < 2; i++) {
        if (pipe2(pair, O_CLOEXEC | O_NONBLOCK) != 0)
            abort();
        s->output[i] = pair[0];
        if (write(pair[1], r->argv[0], strlen(r->argv[0])) < 0)
            abort();
        close(pair[1]);
    }
    if (!r->stdin_pipe)
        return;
    if (pipe2(pair, O_CLOEXEC | O_NONBLOCK) != 0)
        abort();
    s->input = pair[1];
    /* Half of the commands have closed their stdin, the others never read it. */
    if (readers[slot] > 0)
        close(readers[slot]);
    readers[slot] = pair[0];
    if (length % 2 == 0) {
        close(pair[0]);
        readers[slot] = 0;
    }
}

/* ---- one input ---- */

static int to_agent[2];
static int sink;

static void prepare(void) {
    if (to_agent[1] != 0)
        return;
    signal(SIGPIPE, SIG_IGN);
    sink = open("/dev/null", O_WRONLY | O_CLOEXEC);
    if (sink < 0 || pipe2(to_agent, O_NONBLOCK) != 0 || dup2(to_agent[0], STDIN_FILENO) < 0 ||
        dup2(sink, STDOUT_FILENO) < 0)
        abort();
}

static void serve_all(void) {
    for (unsigned i = 0; i < channels_active_count; i++) {
        struct channel *channel = channels_active[i];
        for (int j = 0; j < 2; j++)
            if (channel->out[j].fd >= 0 && stream_events(channel, &channel->out[j]) >= 0)
                stream_serve(channel, &channel->out[j], POLLIN | POLLHUP);
        stream_stop_lingering(channel);
    }
    kills_advance();
    listing_advance();
    cpu_advance();
    channel_settle_all();
    if (!out_flush())
        abort();
}

/* The agent's state lives on from input to input, as it does from frame to frame: what one input
   leaves open is met by the next. A broken rule ends a real agent; here the next one just begins. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    prepare();
    for (size_t at = 0; at < size;) {
        ssize_t n = write(to_agent[1], data + at, size - at);
        at += n > 0 ? (size_t)n : 0;
        while (poll(&(struct pollfd){.fd = STDIN_FILENO, .events = POLLIN}, 1, 0) == 1)
            if (!host_read() || host_obey() != NULL)
                filled = 0;
        serve_all();
    }
    for (int round = 0; round < ROUNDS_PER_INPUT; round++)
        serve_all();
    for (unsigned i = 0; i < channels_active_count; i++)
        if (size % 3 == 0 || channels_active_count > SLOTS / 2) {
            channels_active[i]->exited = true;
            channels_active[i]->closed = true;
        }
    serve_all();
    return 0;
}

/* ---- the driver ---- */

static uint64_t state;

static uint32_t random_below(uint32_t limit) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return limit == 0 ? 0 : (uint32_t)(state >> 20) % limit;
}

static uint32_t next_id = 1;

static size_t random_fields(uint8_t *p) {
    size_t used = 0;
    for (uint32_t fields = random_below(12); fields > 0; fields--) {
        uint32_t length = random_below(4) == 0 ? random_below(300) : 4;
        uint8_t tag = (uint8_t)(1 + random_below(12));
        p[used] = tag;
        put_u32(p + used + 1, tag == TAG_STDIN || tag == TAG_TOOL ? length = 1 : tag == TAG_LABEL ? length = 8 : length);
        memset(p + used + 5, tag == TAG_ENV ? '=' : '/', length);
        if (tag == TAG_ENV && length > 0)
            p[used + 5] = 'A';
        if (tag >= TAG_UID)
            memset(p + used + 5, (int)random_below(2), length);
        used += 5 + length;
    }
    return used;
}

static size_t required_fields(uint8_t *p) {
    static const uint8_t required[] = {1, 2, 0, 0, 0, 'a', 'b', 4, 4, 0, 0, 0, 0,
                                       0, 0, 0, 5, 4, 0, 0, 0, 0, 0, 0, 0,
                                       7, 1, 0, 0, 0, 1};
    memcpy(p, required, sizeof required);
    return sizeof required - (random_below(4) == 0 ? 6 : 0); /* mostly with a stdin */
}

static size_t random_payload(uint8_t type, uint8_t *p) {
    if (type == HOST_START) {
        size_t used = random_below(3) == 0 ? 0 : required_fields(p);
        return used > 0 && random_below(3) > 0 ? used : used + random_fields(p + used);
    }
    if (type == HOST_HELLO)
        return memcpy(p, "KVCH\1\0\0\0", 8) == p ? 8 : 0;
    size_t length = type == HOST_CREDIT   ? 4
                    : type == HOST_SIGNAL ? 2
                    : type == HOST_RESIZE ? 4
                    : type == HOST_DATA   ? 1 + random_below(random_below(2) == 0 ? 100 : 32768)
                    : type == HOST_PING   ? random_below(65)
                                          : 0;
    for (size_t i = 0; i < length; i++)
        p[i] = (uint8_t)random_below(random_below(2) == 0 ? 3 : 256);
    return length;
}

static size_t random_frame(uint8_t *p) {
    uint8_t type = (uint8_t)(2 + random_below(11));
    if (random_below(200) == 0 || !greeted)
        type = HOST_HELLO;
    else if (random_below(2) == 0)
        type = random_below(2) == 0 ? HOST_START : HOST_DATA;
    size_t length = random_payload(type, p + 12);
    bool none = type == HOST_HELLO || type == HOST_PING || type == HOST_PROCESSES;
    put_u32(p, (uint32_t)length);
    p[4] = type;
    p[5] = (uint8_t)(type == HOST_CREDIT ? 1 + random_below(2) : 0);
    put_u16(p + 6, 0);
    put_u32(p + 8, none ? 0 : type == HOST_START ? next_id++ : next_id - 1 - random_below(random_below(5)));
    return 12 + length;
}

static void mutate(uint8_t *data, size_t size) {
    for (uint32_t edits = random_below(8) == 0 ? random_below(8) : 0; edits > 0; edits--)
        data[random_below((uint32_t)size)] = (uint8_t)random_below(256);
}

static void live_a_life(void) {
    static uint8_t input[INPUT_MAX];
    for (int round = 0; round < INPUTS_PER_LIFE; round++) {
        size_t size = 0;
        for (uint32_t frames = 1 + random_below(FRAMES_MAX); frames > 0; frames--)
            size += random_frame(input + size);
        mutate(input, size);
        LLVMFuzzerTestOneInput(input, size);
    }
}

/* Each life is a process: one frame with the largest channel number is the end of all starts. */
int main(int argc, char **argv) {
    long lives = argc > 1 ? atol(argv[1]) : 100;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    for (long life = 0; life < lives; life++) {
        int status = 0;
        pid_t pid = fork();
        if (pid == 0) {
            state = (seed * 1000003 + (uint64_t)life) * 0x9E3779B97F4A7C15ULL | 1;
            live_a_life();
            exit(0);
        }
        if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0)
            return 1;
    }
    return 0;
}
