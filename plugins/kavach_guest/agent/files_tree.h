/* Files and trees of files as sequences of records. */
#ifndef KAVACH_FILES_TREE_H
#define KAVACH_FILES_TREE_H

#include <stdbool.h>
#include <stdint.h>

enum { TREE_DEPTH = 256 };

/* Sends the regular file at `path`, from `offset`. That there are more than `limit` bytes is a failure,
   unless `cut` says to send no more of them. */
void file_send(const char *path, uint64_t offset, uint64_t limit, bool cut);

/* Sends the file or the directory at `path`. */
void tree_pack(const char *path);

/* Makes what the host sends, a file or a directory, at `path`. */
void tree_unpack(const char *path);

#endif
