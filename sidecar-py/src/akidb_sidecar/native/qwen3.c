/* Qwen3's decoder: layers of causal attention and gated feed-forward, each after a root-mean-square norm and added to
 * its input.
 *
 * Several heads of queries share one head of keys and values. The queries and keys of every head are normed and turned
 * by their position. Products start from the bias and add to the residual, and the gate is applied, while a tile is in
 * the first-level cache. A token sees the tokens before it, so the scores after it are never computed, but for those
 * of its tile.
 */

#include "qwen3.h"

#include <math.h>

#include "batches.h"
#include "threads.h"

/* Rows of one head of one text that are one item: what a thread does before somebody sees that it got on. */
enum { QUERY_ROWS = 512 };

/* A chunk, and the layout of its memory. */
struct decoder {
    struct chunk *chunk;
    const struct akidb_qwen3 *qwen3;
    const struct akidb_qwen3_layer *layer;
    int64_t normed_stride, query_key_value_stride, mixed_stride, inner_stride;
    float *x, *normed, *query_key_value, *mixed, *inner;
    float *attention; /* scratch, attention_floats for each thread */
    int64_t attention_floats;
};

/* ---- Norms and positions ---- */

static float inverse_length(const float *row, int64_t width, float epsilon) {
    vector squares = {0};
    for (int64_t column = 0; column < width; column += LANES) squares += load(row + column) * load(row + column);
    return 1 / sqrtf(sum_of(squares) / (float)width + epsilon);
}

struct norm_job {
    const struct decoder *decoder;
    const float *weight;
    const float *from;
    float *to;
    int64_t to_stride, rows;
};

static void norm_item(void *context, long item, int thread) {
    (void)thread;
    const struct norm_job *job = context;
    int64_t width = job->decoder->qwen3->width, end = least((item + 1) * NORM_ROWS, job->rows);
    for (int64_t row = item * NORM_ROWS; row < end; row++) {
        const float *from = job->from + row * width;
        float *to = job->to + row * job->to_stride, scale = inverse_length(from, width, job->decoder->qwen3->epsilon);
        for (int64_t column = 0; column < width; column += LANES)
            store(to + column, load(from + column) * scale * load(job->weight + column));
    }
}

static void norm_rows(const struct decoder *d, const float *weight, const float *from, float *to, int64_t to_stride,
                      int64_t rows) {
    struct norm_job job = {d, weight, from, to, to_stride, rows};
    share(d->chunk->threads, norm_item, &job, (rows + NORM_ROWS - 1) / NORM_ROWS);
}

/* Norm a head and turn its pairs of numbers, which are half a head apart. */
static void turn_head(float *restrict head, const float *weight, const float *cosines, const float *sines, int64_t size,
                      float epsilon) {
    float scale = inverse_length(head, size, epsilon);
    int64_t half = size / 2;
    for (int64_t column = 0; column < half; column += LANES) {
        vector first = load(head + column) * scale * load(weight + column);
        vector second = load(head + half + column) * scale * load(weight + half + column);
        vector cosine = load(cosines + column), sine = load(sines + column);
        store(head + column, first * cosine - second * sine);
        store(head + half + column, second * cosine + first * sine);
    }
}

/* The queries and keys of NORM_ROWS rows of one text. */
static void turn_item(void *context, long item, int thread) {
    (void)thread;
    const struct decoder *d = context;
    const struct akidb_qwen3 *qwen3 = d->qwen3;
    int64_t parts = (d->chunk->longest + NORM_ROWS - 1) / NORM_ROWS, text = item / parts;
    int64_t first = item % parts * NORM_ROWS, end = least(first + NORM_ROWS, d->chunk->lengths[text]), size = qwen3->size;
    for (int64_t place = first; place < end; place++) {
        float *row = d->query_key_value + (row_of(d->chunk, text) + place) * d->query_key_value_stride;
        const float *cosines = qwen3->cosines + place * (size / 2), *sines = qwen3->sines + place * (size / 2);
        for (int64_t head = 0; head < qwen3->heads + qwen3->key_heads; head++)
            turn_head(row + head * size, head < qwen3->heads ? d->layer->query_norm : d->layer->key_norm, cosines,
                      sines, size, qwen3->epsilon);
    }
}

/* ---- Attention ---- */

static int64_t score_stride(int64_t longest) { return round_up(longest, PANEL) + PADDING; }

static int64_t attention_floats(int64_t longest, int64_t size) {
    return round_up(2 * round_up(longest, PANEL) * size + TILE_ROWS * score_stride(longest), ALIGNMENT);
}

/* Some queries of one head of one text. The keys and values that they see become panel matrices. */
static void attend_item(void *context, long item, int thread) {
    const struct decoder *d = context;
    const struct chunk *c = d->chunk;
    int64_t heads = d->qwen3->heads, key_heads = d->qwen3->key_heads, size = d->qwen3->size;
    int64_t parts = (c->longest + QUERY_ROWS - 1) / QUERY_ROWS;
    int64_t text = item / parts / heads, head = item / parts % heads, key_head = head * key_heads / heads;
    int64_t first = item % parts * QUERY_ROWS, end = least(first + QUERY_ROWS, c->lengths[text]);
    if (first >= end) return;
    int64_t stride = d->query_key_value_stride, padded = round_up(end, PANEL);
    const float *query = d->query_key_value + row_of(c, text) * stride + head * size;
    const float *key = query + (heads - head + key_head) * size, *value = key + key_heads * size;
    float *mixed = d->mixed + row_of(c, text) * d->mixed_stride + head * size;
    float *keys = d->attention + thread * d->attention_floats, *values = keys + padded * size;
    float *scores = values + padded * size;
    int64_t scores_stride = score_stride(end);
    for (int64_t row = 0; row < padded; row++) {
        float *column = keys + row / PANEL * PANEL * size + row % PANEL;
        for (int64_t k = 0; k < size; k++) column[k * PANEL] = row < end ? key[row * stride + k] : 0;
    }
    for (int64_t row = 0; row < end; row++)
        for (int64_t column = 0; column < size; column += LANES)
            store(values + column / PANEL * PANEL * end + row * PANEL + column % PANEL, load(value + row * stride + column));
    for (int64_t index = 0, tiles = tile_count(end - first); index < tiles; index++) {
        int64_t start = first + part(end - first, index, tiles), seen = first + part(end - first, index + 1, tiles);
        int64_t rows = seen - start, seen_padded = round_up(seen, PANEL);
        for (int64_t panel = 0; panel < seen_padded; panel += PANEL)
            any_tile(rows, size, query + start * stride, stride, keys + panel * size, PANEL, NULL, scores + panel,
                     scores_stride, SET);
        float shares[TILE_ROWS];
        for (int64_t row = 0; row < rows; row++)
            shares[row] = weigh_row(scores + row * scores_stride, start + row + 1, seen_padded);
        for (int64_t column = 0; column < size; column += PANEL) {
            float *to = mixed + start * d->mixed_stride + column;
            any_tile(rows, seen, scores, scores_stride, values + column * end, PANEL, NULL, to, d->mixed_stride, SET);
            for (int64_t row = 0; row < rows; row++)
                for (int64_t lane = 0; lane < PANEL; lane += LANES)
                    store(to + row * d->mixed_stride + lane, load(to + row * d->mixed_stride + lane) * shares[row]);
        }
    }
}

/* x += attention(norm(x)) */
static void attend(const struct decoder *d) {
    const struct akidb_qwen3 *qwen3 = d->qwen3;
    const struct akidb_qwen3_layer *layer = d->layer;
    struct chunk *c = d->chunk;
    int64_t width = qwen3->width;
    for (int64_t first = 0; first < c->rows; first += INNER_ROWS) {
        int64_t rows = least(INNER_ROWS, c->rows - first);
        norm_rows(d, layer->attention_norm, d->x + first * width, d->normed, d->normed_stride, rows);
        multiply(c, (struct product){.a = d->normed, .a_stride = d->normed_stride, .depth = width,
                                     .b = &layer->query_key_value.weight, .bias = layer->query_key_value.bias,
                                     .c = d->query_key_value + first * d->query_key_value_stride,
                                     .c_stride = d->query_key_value_stride},
                 rows, (qwen3->heads + 2 * qwen3->key_heads) * qwen3->size);
    }
    share(c->threads, turn_item, (void *)d, c->texts * ((c->longest + NORM_ROWS - 1) / NORM_ROWS));
    share(c->threads, attend_item, (void *)d, c->texts * qwen3->heads * ((c->longest + QUERY_ROWS - 1) / QUERY_ROWS));
    multiply(c, (struct product){.a = d->mixed, .a_stride = d->mixed_stride, .depth = qwen3->heads * qwen3->size,
                                 .b = &layer->attention_output.weight, .bias = layer->attention_output.bias, .c = d->x,
                                 .c_stride = width, .adds = 1},
             c->rows, width);
}

/* x += down(silu(gate(norm(x))) up(norm(x))) */
static void feed_forward(const struct decoder *d) {
    const struct akidb_qwen3_layer *layer = d->layer;
    int64_t width = d->qwen3->width, inner = d->qwen3->inner;
    for (int64_t first = 0; first < d->chunk->rows; first += INNER_ROWS) {
        int64_t rows = least(INNER_ROWS, d->chunk->rows - first);
        float *x = d->x + first * width;
        norm_rows(d, layer->feed_forward_norm, x, d->normed, d->normed_stride, rows);
        multiply(d->chunk, (struct product){.a = d->normed, .a_stride = d->normed_stride, .depth = width,
                                            .b = &layer->up.weight, .bias = layer->up.bias, .gate = &layer->gate,
                                            .c = d->inner, .c_stride = d->inner_stride},
                 rows, inner);
        multiply(d->chunk, (struct product){.a = d->inner, .a_stride = d->inner_stride, .depth = inner,
                                            .b = &layer->down.weight, .bias = layer->down.bias, .c = x,
                                            .c_stride = width, .adds = 1},
                 rows, width);
    }
}

/* ---- The network ---- */

/* Lay out the memory; returns how much there is of it. */
static int64_t lay_out(struct decoder *d, float *memory, int64_t rows, int64_t longest, int threads) {
    const struct akidb_qwen3 *qwen3 = d->qwen3;
    int64_t block = least(rows, INNER_ROWS), used = 0;
    d->normed_stride = qwen3->width + PADDING;
    d->query_key_value_stride = (qwen3->heads + 2 * qwen3->key_heads) * qwen3->size + PADDING;
    d->mixed_stride = qwen3->heads * qwen3->size + PADDING;
    d->inner_stride = qwen3->inner + PADDING;
    d->attention_floats = attention_floats(longest, qwen3->size);
    struct { float **place; int64_t floats; } pieces[] = {
        {&d->x, rows * qwen3->width},
        {&d->normed, block * d->normed_stride},
        {&d->query_key_value, rows * d->query_key_value_stride},
        {&d->mixed, rows * d->mixed_stride},
        {&d->inner, block * d->inner_stride},
        {&d->attention, threads * d->attention_floats},
    };
    for (unsigned index = 0; index < sizeof pieces / sizeof *pieces; index++) {
        if (memory) *pieces[index].place = memory + used;
        used += round_up(pieces[index].floats, ALIGNMENT);
    }
    return used;
}

static int64_t floats(const void *model, int64_t rows, int64_t longest, int threads) {
    struct decoder d = {.qwen3 = model};
    return lay_out(&d, NULL, rows, longest, threads);
}

static void look_up_item(void *context, long item, int thread) {
    (void)thread;
    const struct decoder *d = context;
    int64_t width = d->qwen3->width, first = item * NORM_ROWS, end = least(first + NORM_ROWS, d->chunk->rows);
    const float *words = (const float *)d->chunk->inputs + d->chunk->starts[0] * width;
    for (int64_t number = first * width; number < end * width; number++) d->x[number] = words[number];
}

static const float *encode(struct chunk *c) {
    struct decoder d = {.chunk = c, .qwen3 = c->network->model};
    lay_out(&d, c->memory, c->rows, c->longest, c->threads);
    share(c->threads, look_up_item, &d, (c->rows + NORM_ROWS - 1) / NORM_ROWS);
    for (int64_t index = 0; index < d.qwen3->layer_count; index++) {
        d.layer = &d.qwen3->layers[index];
        attend(&d);
        feed_forward(&d);
    }
    norm_rows(&d, d.qwen3->norm, d.x, d.x, d.qwen3->width, c->rows);
    return d.x;
}

int akidb_embed_qwen3(const struct akidb_qwen3 *qwen3, int threads, int pooling, const uint32_t *lengths,
                      int64_t texts, const float *words, float *vectors) {
    struct network network = {.model = qwen3, .width = qwen3->width, .deepest = qwen3->deepest,
                              .floats = floats, .encode = encode};
    return embed_batch(&network, threads, pooling, lengths, texts, words, vectors);
}
