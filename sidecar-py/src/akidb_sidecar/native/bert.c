/* BERT's encoder: layers of attention and feed-forward, each added to its input and followed by a layer norm.
 *
 * Products start from the bias, add to the residual and apply gelu while a tile is in the first-level cache, so only
 * layer norms, softmax and pooling pass over memory of their own.
 */

#include "bert.h"

#include <math.h>

#include "batches.h"
#include "threads.h"

/* A chunk, and the layout of its memory. */
struct encoder {
    struct chunk *chunk;
    const struct akidb_bert *bert;
    float *x, *query_key_value, *mixed, *inner;
    float *attention; /* scratch, attention_floats for each thread */
    int64_t attention_floats;
};

/* ---- Layer norm ---- */

static void norm_row(float *restrict row, struct akidb_norm norm, int64_t width, float epsilon) {
    vector sums = {0}, squares = {0};
    for (int64_t column = 0; column < width; column += LANES) sums += load(row + column);
    float mean = sum_of(sums) / (float)width;
    for (int64_t column = 0; column < width; column += LANES) {
        vector difference = load(row + column) - mean;
        squares += difference * difference;
    }
    float scale = 1 / sqrtf(sum_of(squares) / (float)width + epsilon);
    for (int64_t column = 0; column < width; column += LANES)
        store(row + column, (load(row + column) - mean) * scale * load(norm.weight + column) + load(norm.shift + column));
}

struct norm_job {
    const struct encoder *encoder;
    struct akidb_norm norm;
    int64_t first, end;
};

static void norm_item(void *context, long item, int thread) {
    (void)thread;
    const struct norm_job *job = context;
    const struct akidb_bert *bert = job->encoder->bert;
    int64_t first = job->first + item * NORM_ROWS, end = least(first + NORM_ROWS, job->end);
    for (int64_t row = first; row < end; row++)
        norm_row(job->encoder->x + row * bert->width, job->norm, bert->width, bert->epsilon);
}

static void norm_rows(const struct encoder *e, struct akidb_norm norm, int64_t first, int64_t end) {
    struct norm_job job = {e, norm, first, end};
    share(e->chunk->threads, norm_item, &job, (end - first + NORM_ROWS - 1) / NORM_ROWS);
}

/* ---- Attention ---- */

static int64_t attention_floats(int64_t longest, int64_t size) {
    return round_up(round_up(longest, PANEL) * (size + TILE_ROWS), ALIGNMENT);
}

/* One head of one text. Its keys become a panel matrix; the values are one already, with longer rows. */
static void attend_item(void *context, long item, int thread) {
    const struct encoder *e = context;
    const struct chunk *c = e->chunk;
    const struct akidb_bert *bert = e->bert;
    int64_t text = item / bert->heads, head = item % bert->heads, length = c->lengths[text];
    int64_t size = bert->width / bert->heads, stride = 3 * bert->width, padded = round_up(length, PANEL);
    const float *query = e->query_key_value + row_of(c, text) * stride + head * size;
    const float *key = query + bert->width, *value = key + bert->width;
    float *mixed = e->mixed + row_of(c, text) * bert->width + head * size;
    float *keys = e->attention + thread * e->attention_floats, *scores = keys + padded * size;
    for (int64_t row = 0; row < padded; row++) {
        float *column = keys + row / PANEL * PANEL * size + row % PANEL;
        for (int64_t k = 0; k < size; k++) column[k * PANEL] = row < length ? key[row * stride + k] : 0;
    }
    for (int64_t index = 0, tiles = tile_count(length); index < tiles; index++) {
        int64_t start = part(length, index, tiles), rows = part(length, index + 1, tiles) - start;
        for (int64_t panel = 0; panel < padded; panel += PANEL)
            any_tile(rows, size, query + start * stride, stride, keys + panel * size, PANEL, NULL, scores + panel,
                     padded, SET);
        float shares[TILE_ROWS];
        for (int64_t row = 0; row < rows; row++) shares[row] = weigh_row(scores + row * padded, length, padded);
        for (int64_t column = 0; column < size; column += PANEL) {
            float *to = mixed + start * bert->width + column;
            any_tile(rows, length, scores, padded, value + column, stride, NULL, to, bert->width, SET);
            for (int64_t row = 0; row < rows; row++)
                for (int64_t lane = 0; lane < PANEL; lane += LANES)
                    store(to + row * bert->width + lane, load(to + row * bert->width + lane) * shares[row]);
        }
    }
}

/* ---- The network ---- */

/* x = norm(words[token] + positions[place in its text]); padding tokens are not counted as places */
static void look_up_item(void *context, long text, int thread) {
    (void)thread;
    const struct encoder *e = context;
    const struct chunk *c = e->chunk;
    const struct akidb_bert *bert = e->bert;
    const uint32_t *token_ids = (const uint32_t *)c->inputs + c->starts[0];
    for (int64_t index = 0, place = 0; index < c->lengths[text]; index++) {
        int64_t row = row_of(c, text) + index, width = bert->width;
        const float *word = bert->words + token_ids[row] * width;
        const float *position =
            token_ids[row] == bert->padding ? bert->padding_position : bert->positions + place++ * width;
        float *x = e->x + row * width;
        for (int64_t column = 0; column < width; column++) x[column] = word[column] + position[column];
        norm_row(x, bert->norm, width, bert->epsilon);
    }
}

static void feed_forward(const struct encoder *e, const struct akidb_bert_layer *layer) {
    int64_t width = e->bert->width, inner = e->bert->inner, stride = inner + PADDING;
    for (int64_t first = 0; first < e->chunk->rows; first += INNER_ROWS) {
        int64_t end = least(first + INNER_ROWS, e->chunk->rows);
        float *x = e->x + first * width;
        multiply(e->chunk, (struct product){.a = x, .a_stride = width, .depth = width, .b = &layer->up.weight,
                                            .bias = layer->up.bias, .c = e->inner, .c_stride = stride,
                                            .activation = GELU},
                 end - first, inner);
        multiply(e->chunk, (struct product){.a = e->inner, .a_stride = stride, .depth = inner, .b = &layer->down.weight,
                                            .bias = layer->down.bias, .c = x, .c_stride = width, .adds = 1},
                 end - first, width);
        norm_rows(e, layer->output_norm, first, end);
    }
}

/* Lay out the memory; returns how much there is of it. */
static int64_t lay_out(struct encoder *e, float *memory, int64_t rows, int64_t longest, int threads) {
    int64_t x = round_up(rows * e->bert->width, ALIGNMENT);
    int64_t inner = round_up(least(rows, INNER_ROWS) * (e->bert->inner + PADDING), ALIGNMENT);
    e->attention_floats = attention_floats(longest, e->bert->width / e->bert->heads);
    if (memory) {
        e->x = memory;
        e->query_key_value = memory + x;
        e->mixed = memory + 4 * x;
        e->inner = memory + 5 * x;
        e->attention = memory + 5 * x + inner;
    }
    return 5 * x + inner + threads * e->attention_floats;
}

static int64_t floats(const void *model, int64_t rows, int64_t longest, int threads) {
    struct encoder e = {.bert = model};
    return lay_out(&e, NULL, rows, longest, threads);
}

static const float *encode(struct chunk *c) {
    struct encoder e = {.chunk = c, .bert = c->network->model};
    lay_out(&e, c->memory, c->rows, c->longest, c->threads);
    int64_t width = e.bert->width;
    share(c->threads, look_up_item, &e, c->texts);
    for (int64_t index = 0; index < e.bert->layer_count; index++) {
        const struct akidb_bert_layer *layer = &e.bert->layers[index];
        multiply(c, (struct product){.a = e.x, .a_stride = width, .depth = width, .b = &layer->query_key_value.weight,
                                     .bias = layer->query_key_value.bias, .c = e.query_key_value,
                                     .c_stride = 3 * width},
                 c->rows, 3 * width);
        share(c->threads, attend_item, &e, c->texts * e.bert->heads);
        multiply(c, (struct product){.a = e.mixed, .a_stride = width, .depth = width,
                                     .b = &layer->attention_output.weight, .bias = layer->attention_output.bias,
                                     .c = e.x, .c_stride = width, .adds = 1},
                 c->rows, width);
        norm_rows(&e, layer->attention_norm, 0, c->rows);
        feed_forward(&e, layer);
    }
    return e.x;
}

int akidb_embed_bert(const struct akidb_bert *bert, int threads, int pooling, const uint32_t *lengths, int64_t texts,
                     const uint32_t *token_ids, float *vectors) {
    struct network network = {.model = bert, .width = bert->width, .floats = floats, .encode = encode};
    return embed_batch(&network, threads, pooling, lengths, texts, token_ids, vectors);
}
