/* BERT's encoder and pooling, in float32, over texts laid one after the other. Mirrored by _kernels.py. */

#ifndef AKIDB_BERT_H
#define AKIDB_BERT_H

#include <stdint.h>

struct akidb_norm {
    const float *weight, *shift;
};

struct akidb_linear {
    const float *weight; /* panel matrix, see products.h */
    const float *bias;
};

struct akidb_layer {
    struct akidb_linear query_key_value; /* [inputs][3][heads][size]; queries are scaled by log2(e) / sqrt(size) */
    struct akidb_linear attention_output;
    struct akidb_norm attention_norm;
    struct akidb_linear up, down;
    struct akidb_norm output_norm;
};

struct akidb_bert {
    int64_t layer_count, width, heads, inner; /* width / heads and inner are multiples of akidb_panel() */
    float epsilon;
    const float *words, *positions; /* [vocabulary][width], [places][width] */
    struct akidb_norm norm;
    const struct akidb_layer *layers;
};

enum akidb_pooling { AKIDB_MEAN, AKIDB_CLS, AKIDB_LAST };
enum akidb_outcome { AKIDB_DONE, AKIDB_NO_MEMORY, AKIDB_UNUSABLE };

/* Layers computed so far, by all threads: it grows while a batch gets on. Others may read it at any time. */
extern uint64_t akidb_layers_done;

/* Columns per panel of a panel matrix. */
int akidb_panel(void);

/* Store a row-major [outputs][inputs] matrix, times `scale` and transposed, as a panel matrix. */
void akidb_pack(const float *weight, int64_t outputs, int64_t inputs, float scale, float *panels);

/* Write [texts][width] vectors, pooled and not normalised. Every length is at least 1 and at most the number of
 * places, every token is below the size of the vocabulary: the caller has looked. Returns an akidb_outcome;
 * AKIDB_UNUSABLE says that a vector is zero or not finite. Calls wait for one another. */
int akidb_embed(const struct akidb_bert *bert, int threads, int pooling, const uint32_t *lengths, int64_t texts,
                const uint32_t *token_ids, float *vectors);

#endif
