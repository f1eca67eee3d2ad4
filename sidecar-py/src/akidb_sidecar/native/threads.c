/* A pool of threads that shares the items of a job.
 *
 * The caller publishes a job and takes its items like every helper does, so a helper that comes late, because
 * another process has its core, costs nothing but its help. Jobs of one text take 20 to 300 microseconds, so
 * publishing one must cost less than one microsecond, which rules out a lock on the way.
 *
 * Why a late helper cannot do harm. `ticket` holds the number of the job in its upper bits and the next item in its
 * lower ones, and grows all the time. An item is taken by a compare-and-swap of a ticket that was read *before* the
 * fields of the job were. The caller closes the ticket before it writes these fields; whoever has read one of a newer
 * job has a ticket that is no longer there, and its swap fails. The caller goes on when `unfinished` is 0, which says
 * that every item has been taken and done: nobody is inside any more, and `context` may end.
 *
 * Why no wake-up is lost. A helper says that it is asleep and then looks for a job; the caller publishes a job and
 * then looks for sleepers. Both orders are sequentially consistent, so at least one sees the other. The caller's wait
 * for the last item is the same with the roles exchanged.
 *
 * Nobody spins for longer than SPIN_NANOSECONDS, and after the first tenth of it the core is offered to others.
 */

#include "threads.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>

enum { SPIN_NANOSECONDS = 60000, POLLS_PER_LOOK_AT_CLOCK = 32, ITEM_BITS = 24, CALLER = 0 };
enum { CLOSED = (1 << ITEM_BITS) - 1 };

struct helper {
    pthread_cond_t wake;
    atomic_int asleep;
};

static struct {
    _Alignas(64) _Atomic uint64_t ticket;
    _Atomic(work_function *) work;
    _Atomic(void *) context;
    atomic_long items;
    atomic_int threads;
    _Alignas(64) atomic_long unfinished;
    atomic_int caller_waits;
    _Alignas(64) pthread_mutex_t lock;
    pthread_cond_t finished;
    int started; /* read and written by the caller alone */
    struct helper helpers[MOST_THREADS];
} pool = {.ticket = CLOSED, .lock = PTHREAD_MUTEX_INITIALIZER, .finished = PTHREAD_COND_INITIALIZER};

uint64_t akidb_steps_done;

static void count_step(void) { __atomic_fetch_add(&akidb_steps_done, 1, __ATOMIC_RELAXED); }

struct claim {
    work_function *work;
    void *context;
    long item;
};

/* Look at the job as thread `number`. A closed ticket's item is beyond those of every job. Returns whether there is an item; takes it unless `claim` is NULL. */
static int find_item(int number, struct claim *claim) {
    uint64_t ticket = atomic_load(&pool.ticket);
    for (;;) {
        long item = (long)(ticket & CLOSED);
        work_function *work = atomic_load(&pool.work);
        void *context = atomic_load(&pool.context);
        if (item >= atomic_load(&pool.items) || number >= atomic_load(&pool.threads)) return 0;
        if (!claim) return 1;
        if (atomic_compare_exchange_weak(&pool.ticket, &ticket, ticket + 1)) {
            *claim = (struct claim){work, context, item};
            return 1;
        }
    }
}

static void do_items(int number) {
    struct claim claim;
    while (find_item(number, &claim)) {
        claim.work(claim.context, claim.item, number);
        count_step();
        if (atomic_fetch_sub(&pool.unfinished, 1) == 1 && atomic_load(&pool.caller_waits)) {
            pthread_mutex_lock(&pool.lock);
            pthread_cond_signal(&pool.finished);
            pthread_mutex_unlock(&pool.lock);
        }
    }
}

static int has_item(int number) { return find_item(number, NULL); }

static int is_finished(int number) {
    (void)number;
    return atomic_load(&pool.unfinished) == 0;
}

static int64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Wait a short while; returns whether it came true. */
static int soon(int (*is_true)(int), int number) {
    for (int64_t start = nanoseconds(), spent = 0; spent < SPIN_NANOSECONDS; spent = nanoseconds() - start) {
        for (int poll = 0; poll < POLLS_PER_LOOK_AT_CLOCK; poll++) {
            if (is_true(number)) return 1;
#if defined(__x86_64__)
            __builtin_ia32_pause();
#elif defined(__aarch64__)
            __asm__ volatile("yield");
#endif
        }
        if (spent > SPIN_NANOSECONDS / 10) sched_yield();
    }
    return is_true(number);
}

static void *help(void *argument) {
    int number = (int)(intptr_t)argument;
    struct helper *me = &pool.helpers[number];
    for (;;) {
        do_items(number);
        /* The next job of a batch comes within microseconds; the next batch may not. */
        if (soon(has_item, number)) continue;
        pthread_mutex_lock(&pool.lock);
        atomic_store(&me->asleep, 1);
        while (!has_item(number)) pthread_cond_wait(&me->wake, &pool.lock);
        atomic_store(&me->asleep, 0);
        pthread_mutex_unlock(&pool.lock);
    }
    return NULL;
}

int reserve_threads(int threads) {
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    if (pool.started + 1 >= threads) return threads < 1 ? 1 : threads;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for the interpreter's threads */
    while (pool.started + 1 < threads) {
        int number = pool.started + 1;
        pthread_t thread;
        pthread_cond_init(&pool.helpers[number].wake, NULL);
        if (pthread_create(&thread, NULL, help, (void *)(intptr_t)number)) break;
        pthread_detach(thread);
        pool.started++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return pool.started + 1;
}

void share(int threads, work_function *work, void *context, long items) {
    if (threads < 2 || items < 2 || items >= CLOSED) {
        for (long item = 0; item < items; item++) {
            work(context, item, CALLER);
            count_step();
        }
        return;
    }
    uint64_t next_job = (atomic_load(&pool.ticket) | CLOSED) + 1;
    atomic_store(&pool.ticket, next_job | CLOSED);
    atomic_store(&pool.work, work);
    atomic_store(&pool.context, context);
    atomic_store(&pool.items, items);
    atomic_store(&pool.threads, threads);
    atomic_store(&pool.unfinished, items);
    atomic_store(&pool.ticket, next_job);
    for (int number = 1; number < threads; number++) {
        struct helper *helper = &pool.helpers[number];
        if (!atomic_load(&helper->asleep)) continue;
        pthread_mutex_lock(&pool.lock);
        pthread_cond_signal(&helper->wake);
        pthread_mutex_unlock(&pool.lock);
    }
    do_items(CALLER);
    if (soon(is_finished, CALLER)) return;
    pthread_mutex_lock(&pool.lock);
    atomic_store(&pool.caller_waits, 1);
    while (!is_finished(CALLER)) pthread_cond_wait(&pool.finished, &pool.lock);
    atomic_store(&pool.caller_waits, 0);
    pthread_mutex_unlock(&pool.lock);
}
