/* BERT's encoder and pooling, in float32, over texts laid one after the other. Mirrored by _kernels.py. */

#ifndef AKIDB_BERT_H
#define AKIDB_BERT_H

#include "kernels.h"

struct akidb_norm {
    const float *weight, *shift;
};

struct akidb_bert_layer {
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
    int64_t padding;                /* the token that takes no place in a text, or -1 */
    const float *padding_position;  /* [width], added to that token */
    struct akidb_norm norm;
    const struct akidb_bert_layer *layers;
};

/* Write [texts][width] vectors, pooled and not normalised. Every length is at least 1 and at most the number of
 * places, every token is below the size of the vocabulary: the caller has looked. Returns an akidb_outcome;
 * AKIDB_UNUSABLE says that a vector is zero or not finite. Calls wait for one another. */
int akidb_embed_bert(const struct akidb_bert *bert, int threads, int pooling, const uint32_t *lengths, int64_t texts,
                     const uint32_t *token_ids, float *vectors);

#endif
