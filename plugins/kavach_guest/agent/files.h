/* The file tool: the same program in another mode. See docs/reference/file-tool.md. */
#ifndef KAVACH_FILES_H
#define KAVACH_FILES_H

/* Does the operation that argv[2] names and returns its exit status; argv[1] is "--files". */
int files_main(int argc, char **argv);

#endif
