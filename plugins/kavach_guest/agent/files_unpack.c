#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "files_target.h"
#include "files_tree.h"
#include "files_walk.h"
#include "files_wire.h"

enum { BUILDING = 0700 }; /* a directory's mode until all is in it */

/* A tree that did not exist is made under a hidden name, which a failure removes with all in it. */
static struct place place;
static char hidden[HIDDEN_NAME_SIZE];

static void remove_hidden_tree(void) {
    tree_remove(place.directory, hidden, hidden, true);
}

static bool is_hidden(void) {
    return hidden[0] != 0;
}

static _Noreturn void misunderstand(void) {
    wire_fail(EPROTO, "");
}

static void expect_done(void) {
    struct record record;
    wire_next(&record);
    if (record.type != RECORD_DONE)
        misunderstand();
}

static void receive_contents(struct target *target) {
    if (target_receive(target) != RECORD_CLOSE)
        misunderstand();
}

static void unpack_file(const struct walk *walk, mode_t mode) {
    struct target target;
    target_open(&target, walk, mode, false);
    receive_contents(&target);
    expect_done();
    target_commit(&target);
}

static void add_file(const struct walk *walk, const struct entry *entry) {
    struct target target;
    target_open_in(&target, walk, entry->name, entry->mode, is_hidden());
    receive_contents(&target);
    target_commit(&target);
}

static void add_link(const struct walk *walk, const struct entry *entry) {
    if (symlinkat(entry->target, walk->fd, entry->name) == 0)
        return;
    if (errno != EEXIST || is_hidden())
        walk_fail_errno(walk, entry->name);
    char fresh[HIDDEN_NAME_SIZE];
    hidden_name(fresh);
    if (symlinkat(entry->target, walk->fd, fresh) != 0)
        walk_fail_errno(walk, entry->name);
    if (renameat(walk->fd, fresh, walk->fd, entry->name) != 0) {
        int error = errno;
        (void)unlinkat(walk->fd, fresh, 0);
        walk_fail(walk, entry->name, (uint32_t)error);
    }
}

/* Goes into a directory that is new or was there; only a new one is given a mode. */
static void add_directory(struct walk *walk, const struct entry *entry) {
    if (walk->depth == TREE_DEPTH)
        walk_fail(walk, entry->name, REASON_TOO_DEEP);
    mode_t mode = entry->mode;
    if (mkdirat(walk->fd, entry->name, BUILDING) != 0) {
        if (errno != EEXIST || is_hidden())
            walk_fail_errno(walk, entry->name);
        mode = NO_MODE;
    }
    int fd = directory_open(walk->fd, entry->name);
    if (fd < 0)
        walk_fail_errno(walk, entry->name);
    walk_enter(walk, fd, entry->name, mode);
}

static void add(struct walk *walk, const struct record *record) {
    struct entry entry;
    wire_read_entry(record, &entry, false);
    switch (entry.kind) {
    case KIND_FILE:
        add_file(walk, &entry);
        break;
    case KIND_DIRECTORY:
        add_directory(walk, &entry);
        break;
    case KIND_SYMLINK:
        add_link(walk, &entry);
        break;
    default:
        misunderstand();
    }
}

static int make_hidden_root(const struct walk *walk) {
    place_open(&place, walk->root);
    hidden_name(hidden);
    if (mkdirat(place.directory, hidden, BUILDING) != 0)
        walk_fail_errno(walk, "");
    wire_on_failure(remove_hidden_tree);
    return directory_open(place.directory, hidden);
}

static void unpack_directory(struct walk *walk, mode_t mode) {
    int fd = open(walk->root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT)
        fd = make_hidden_root(walk);
    if (fd < 0)
        walk_fail_errno(walk, "");
    walk_enter(walk, fd, "", is_hidden() ? mode : NO_MODE);
    while (walk->depth > 0) {
        struct record record;
        wire_next(&record);
        if (record.type == RECORD_ENTRY)
            add(walk, &record);
        else if (record.type == RECORD_UP)
            walk_leave(walk);
        else
            misunderstand();
    }
    expect_done();
    if (is_hidden() && renameat(place.directory, hidden, place.directory, place.name) != 0)
        walk_fail_errno(walk, "");
    wire_on_failure(NULL);
}

void tree_unpack(const char *path) {
    struct walk walk = {.root = path, .fd = -1};
    struct record record;
    struct entry entry;
    wire_next(&record);
    if (record.type != RECORD_ENTRY)
        misunderstand();
    wire_read_entry(&record, &entry, true);
    if (entry.kind == KIND_FILE)
        unpack_file(&walk, entry.mode);
    else if (entry.kind == KIND_DIRECTORY)
        unpack_directory(&walk, entry.mode);
    else
        misunderstand();
}
