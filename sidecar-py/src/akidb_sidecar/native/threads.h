/* A pool of threads that shares the items of a job. See threads.c. */

#ifndef AKIDB_THREADS_H
#define AKIDB_THREADS_H

#include <stdint.h>

enum { MOST_THREADS = 64 };

/* Items done so far, by all threads: it grows while a job makes progress. Others may read it at any time. */
extern uint64_t akidb_steps_done;

/* Does one item. `thread` is below the number of threads that share the job and differs between those at work. */
typedef void work_function(void *context, long item, int thread);

/* Start helpers until `threads` can share a job. Returns how many can, the caller included: at least 1, and fewer
 * than asked for if the system has no more. */
int reserve_threads(int threads);

/* Do items 0 .. items - 1, each once, and return when all are done. What a job wrote is visible to the next.
 * One caller at a time. `threads` is at most what reserve_threads returned. */
void share(int threads, work_function *work, void *context, long items);

#endif
