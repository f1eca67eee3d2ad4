/* Batches of texts on several threads. See batches.c. */

#ifndef AKIDB_BATCHES_H
#define AKIDB_BATCHES_H

#include <stdatomic.h>
#include <stdint.h>

#include "kernels.h"
#include "products.h"

/* c = activation(a times b + bias), or that added to c; with a gate, c = silu(a times gate) (a times b + bias). */
struct product {
    const float *a; /* row-major */
    long a_stride, depth;
    const struct akidb_matrix *b, *gate; /* the gate may be NULL */
    const float *bias;                   /* may be NULL */
    float *c;
    long c_stride;
    int adds;
    enum activation { LINEAR, GELU } activation;
};

/* Chosen by the size of caches. Half and double of INNER_ROWS could not be told from noise. */
enum {
    INNER_ROWS = 96,      /* rows between the two products of the feed-forward: they stay in the second-level cache */
    NORM_ROWS = 8,        /* rows per item */
    PADDING = 16,         /* keeps rows of a power-of-two length out of each other's way in the cache */
    ALIGNMENT = 16,       /* floats, for memory of its own */
};

struct chunk;

/* A model's forward pass. */
struct network {
    const void *model;
    int64_t width;
    int64_t deepest; /* rows of the tallest matrix that is stored as codes; 0 without any */
    /* Memory that `encode` needs for this many rows, in texts of at most `longest` tokens. */
    int64_t (*floats)(const void *model, int64_t rows, int64_t longest, int threads);
    /* Returns [rows][width] in the chunk's memory: what is to be pooled. */
    const float *(*encode)(struct chunk *chunk);
};

/* Texts that are computed at once, and the memory for it. */
struct chunk {
    const struct network *network;
    const void *inputs; /* the network's own: what the rows are made of, from the first row of the batch on */
    int threads;        /* that share every step */
    int pooling;
    const uint32_t *lengths;
    const int64_t *starts; /* first row of each text, counted over the batch */
    int64_t texts, rows, longest;
    float *memory, *vectors;
    float *panels; /* scratch: for each thread a panel of `deepest` rows */
    atomic_int *is_unusable;
};

static inline int64_t round_up(int64_t number, int64_t multiple) { return (number + multiple - 1) / multiple * multiple; }
static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t row_of(const struct chunk *c, int64_t text) { return c->starts[text] - c->starts[0]; }

/* The product of some rows with all columns of a panel matrix. */
void multiply(const struct chunk *c, struct product product, int64_t rows, int64_t columns);

/* Turn a row of scores (in powers of two) into weights; return one over their sum. Those from `length` on weigh
 * nothing. If a score is not finite, neither is what is returned. */
float weigh_row(float *restrict scores, int64_t length, int64_t padded);

/* See the functions akidb_embed_*. Calls wait for one another. */
int embed_batch(const struct network *network, int threads, int pooling, const uint32_t *lengths, int64_t texts,
                const void *inputs, float *vectors);

#endif
