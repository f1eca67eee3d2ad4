/* Qwen3's decoder and pooling, in float32, over texts laid one after the other. Mirrored by _kernels.py. */

#ifndef AKIDB_QWEN3_H
#define AKIDB_QWEN3_H

#include "kernels.h"

struct akidb_qwen3_layer {
    const float *attention_norm;
    struct akidb_linear query_key_value; /* [inputs][heads + 2 key_heads][size] */
    const float *query_norm, *key_norm;  /* [size]; that of the queries is scaled by log2(e) / sqrt(size) */
    struct akidb_linear attention_output;
    const float *feed_forward_norm;
    struct akidb_matrix gate;
    struct akidb_linear up, down;
};

struct akidb_qwen3 {
    int64_t layer_count, width, heads, key_heads, size, inner; /* width, size, inner: multiples of akidb_panel() */
    int64_t deepest; /* the largest depth of a matrix that is stored as codes; 0 without any */
    float epsilon;
    const float *cosines, *sines; /* [places][size / 2] */
    const float *norm;
    const struct akidb_qwen3_layer *layers;
};

/* Write [texts][width] vectors, pooled and not normalised, of the rows of the table of words that belong to the tokens.
 * Every length is at least 1 and at most the number of places. Returns an akidb_outcome; AKIDB_UNUSABLE says that a
 * vector is zero or not finite. Calls wait for one another. */
int akidb_embed_qwen3(const struct akidb_qwen3 *qwen3, int threads, int pooling, const uint32_t *lengths,
                      int64_t texts, const float *words, float *vectors);

#endif
