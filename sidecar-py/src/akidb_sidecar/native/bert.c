/* BERT's encoder and pooling: one call for a batch.
 *
 * Texts are neither padded nor sorted: linear layers see rows of tokens, and attention finds queries, keys and values
 * where the product left them. Products start from the bias, add to the residual and apply gelu while a tile is in
 * the first-level cache, so only layer norms, softmax and pooling pass over memory of their own. The order of every
 * sum depends on nothing but the text: neither neighbours nor threads change a bit of its vector.
 *
 * A batch is cut into *chunks* of whole texts. Threads work in one of two ways, see plan():
 *   apart     each computes a chunk from the first layer to the last, and nobody waits for anybody;
 *   together  they share the panels, rows and heads of every step of one chunk: for a few short texts.
 */

#include "bert.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "products.h"
#include "threads.h"

/* Chosen by the size of caches. Half and double of CHUNK_TOKENS and INNER_ROWS could not be told from noise. */
enum {
    CHUNK_TOKENS = 192,    /* apart: activations stay near, and weights are read from memory seldom enough */
    TOGETHER_TOKENS = 512, /* together: the same for all threads' caches */
    APART_TOKENS = 96,     /* fewer per thread are computed together: weights are then read once, not by each */
    INNER_ROWS = 96,       /* rows between the two products of the feed-forward: they stay in the second-level cache */
    NORM_ROWS = 8,         /* rows per item */
    INNER_PADDING = 16,    /* keeps rows of a power-of-two length out of each other's way in the cache */
    ITEMS_PER_THREAD = 4,  /* at least, so that they end at about the same time */
    ALIGNMENT = 16,        /* floats, for memory of its own */
};

/* Texts that are computed at once, and the memory for it. */
struct chunk {
    const struct akidb_bert *bert;
    int threads; /* that share every step */
    int pooling;
    const uint32_t *lengths;
    const int64_t *starts; /* first row of each text, counted over the batch */
    int64_t texts, rows;
    const uint32_t *token_ids;
    float *vectors;
    float *x, *query_key_value, *mixed, *inner;
    float *attention; /* scratch, attention_floats for each thread */
    int64_t attention_floats;
    atomic_int *is_unusable;
};

static int64_t round_up(int64_t number, int64_t multiple) { return (number + multiple - 1) / multiple * multiple; }
static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t row_of(const struct chunk *c, int64_t text) { return c->starts[text] - c->starts[0]; }

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
    struct chunk *chunk;
    struct akidb_norm norm;
    int64_t first, end;
};

static void norm_item(void *context, long item, int thread) {
    (void)thread;
    const struct norm_job *job = context;
    const struct akidb_bert *bert = job->chunk->bert;
    int64_t first = job->first + item * NORM_ROWS, end = least(first + NORM_ROWS, job->end);
    for (int64_t row = first; row < end; row++)
        norm_row(job->chunk->x + row * bert->width, job->norm, bert->width, bert->epsilon);
}

static void norm_rows(struct chunk *c, struct akidb_norm norm, int64_t first, int64_t end) {
    struct norm_job job = {c, norm, first, end};
    share(c->threads, norm_item, &job, (end - first + NORM_ROWS - 1) / NORM_ROWS);
}

/* ---- Products ---- */

struct product_job {
    struct product product;
    int64_t rows, row_parts;
};

static void product_item(void *context, long item, int thread) {
    (void)thread;
    const struct product_job *job = context;
    int64_t row_part = item % job->row_parts;
    product_panel(&job->product, item / job->row_parts, part(job->rows, row_part, job->row_parts),
                  part(job->rows, row_part + 1, job->row_parts));
}

static void multiply(struct chunk *c, struct product product, int64_t rows, int64_t columns) {
    int64_t panels = columns / PANEL, wanted = c->threads < 2 ? 1 : c->threads * ITEMS_PER_THREAD;
    int64_t row_parts = least((wanted + panels - 1) / panels, tile_count(rows));
    struct product_job job = {product, rows, row_parts};
    share(c->threads, product_item, &job, panels * row_parts);
}

/* ---- Attention ---- */

/* Turn a row of scores (in powers of two) into weights; return one over their sum. */
static float weigh_row(float *restrict scores, int64_t length, int64_t padded) {
    for (int64_t column = length; column < padded; column++) scores[column] = -INFINITY;
    vector largest = load(scores), sums = {0};
    for (int64_t column = LANES; column < padded; column += LANES) largest = larger(load(scores + column), largest);
    vector top = all(largest_of(largest));
    for (int64_t column = 0; column < padded; column += LANES) {
        vector weights = power_of_two(load(scores + column) - top);
        store(scores + column, weights);
        sums += weights;
    }
    return 1 / sum_of(sums);
}

static int64_t attention_floats(int64_t longest, int64_t size) {
    return round_up(round_up(longest, PANEL) * (size + TILE_ROWS), ALIGNMENT);
}

/* One head of one text. Its keys become a panel matrix; the values are one already, with longer rows. */
static void attend_item(void *context, long item, int thread) {
    const struct chunk *c = context;
    const struct akidb_bert *bert = c->bert;
    int64_t text = item / bert->heads, head = item % bert->heads, length = c->lengths[text];
    int64_t size = bert->width / bert->heads, stride = 3 * bert->width, padded = round_up(length, PANEL);
    const float *query = c->query_key_value + row_of(c, text) * stride + head * size;
    const float *key = query + bert->width, *value = key + bert->width;
    float *mixed = c->mixed + row_of(c, text) * bert->width + head * size;
    float *keys = c->attention + thread * c->attention_floats, *scores = keys + padded * size;
    for (int64_t row = 0; row < padded; row++) {
        float *column = keys + row / PANEL * PANEL * size + row % PANEL;
        for (int64_t k = 0; k < size; k++) column[k * PANEL] = row < length ? key[row * stride + k] : 0;
    }
    for (int64_t index = 0, tiles = tile_count(length); index < tiles; index++) {
        int64_t start = part(length, index, tiles), rows = part(length, index + 1, tiles) - start;
        for (int64_t panel = 0; panel < padded; panel += PANEL)
            any_tile(rows, size, query + start * stride, stride, keys + panel * size, PANEL, NULL, scores + panel,
                     padded, 0);
        float shares[TILE_ROWS];
        for (int64_t row = 0; row < rows; row++) shares[row] = weigh_row(scores + row * padded, length, padded);
        for (int64_t column = 0; column < size; column += PANEL) {
            float *to = mixed + start * bert->width + column;
            any_tile(rows, length, scores, padded, value + column, stride, NULL, to, bert->width, 0);
            for (int64_t row = 0; row < rows; row++)
                for (int64_t lane = 0; lane < PANEL; lane += LANES)
                    store(to + row * bert->width + lane, load(to + row * bert->width + lane) * shares[row]);
        }
    }
}

/* ---- The network ---- */

/* x = norm(words[token] + positions[place in its text]) */
static void look_up_item(void *context, long text, int thread) {
    (void)thread;
    const struct chunk *c = context;
    const struct akidb_bert *bert = c->bert;
    for (int64_t place = 0; place < c->lengths[text]; place++) {
        int64_t row = row_of(c, text) + place, width = bert->width;
        const float *word = bert->words + c->token_ids[row] * width, *position = bert->positions + place * width;
        float *x = c->x + row * width;
        for (int64_t column = 0; column < width; column++) x[column] = word[column] + position[column];
        norm_row(x, bert->norm, width, bert->epsilon);
    }
}

static void pool_item(void *context, long text, int thread) {
    (void)thread;
    const struct chunk *c = context;
    int64_t width = c->bert->width, length = c->lengths[text];
    const float *rows = c->x + row_of(c, text) * width;
    float *to = c->vectors + text * width;
    int64_t first = c->pooling == AKIDB_LAST ? length - 1 : 0, end = c->pooling == AKIDB_CLS ? 1 : length;
    float share = 1 / (float)(end - first);
    vector squares = {0};
    for (int64_t column = 0; column < width; column += LANES) {
        vector sum = {0};
        for (int64_t row = first; row < end; row++) sum += load(rows + row * width + column);
        store(to + column, sum * share);
        squares += sum * share * (sum * share);
    }
    float square = sum_of(squares);
    if (!(square > 0 && square < INFINITY)) atomic_store(c->is_unusable, 1);
}

static void feed_forward(struct chunk *c, const struct akidb_layer *layer) {
    int64_t width = c->bert->width, inner = c->bert->inner, stride = inner + INNER_PADDING;
    for (int64_t first = 0; first < c->rows; first += INNER_ROWS) {
        int64_t end = least(first + INNER_ROWS, c->rows);
        float *x = c->x + first * width;
        multiply(c, (struct product){.a = x, .a_stride = width, .depth = width, .b = layer->up.weight,
                                     .bias = layer->up.bias, .c = c->inner, .c_stride = stride, .activation = GELU},
                 end - first, inner);
        multiply(c, (struct product){.a = c->inner, .a_stride = stride, .depth = inner, .b = layer->down.weight,
                                     .bias = layer->down.bias, .c = x, .c_stride = width, .adds = 1},
                 end - first, width);
        norm_rows(c, layer->output_norm, first, end);
    }
}

uint64_t akidb_layers_done;

static void encode(struct chunk *c) {
    int64_t width = c->bert->width;
    share(c->threads, look_up_item, c, c->texts);
    for (int64_t index = 0; index < c->bert->layer_count; index++) {
        const struct akidb_layer *layer = &c->bert->layers[index];
        multiply(c, (struct product){.a = c->x, .a_stride = width, .depth = width, .b = layer->query_key_value.weight,
                                     .bias = layer->query_key_value.bias, .c = c->query_key_value,
                                     .c_stride = 3 * width},
                 c->rows, 3 * width);
        share(c->threads, attend_item, c, c->texts * c->bert->heads);
        multiply(c, (struct product){.a = c->mixed, .a_stride = width, .depth = width,
                                     .b = layer->attention_output.weight, .bias = layer->attention_output.bias,
                                     .c = c->x, .c_stride = width, .adds = 1},
                 c->rows, width);
        norm_rows(c, layer->attention_norm, 0, c->rows);
        feed_forward(c, layer);
        __atomic_fetch_add(&akidb_layers_done, 1, __ATOMIC_RELAXED);
    }
    share(c->threads, pool_item, c, c->texts);
}

/* ---- Batches ---- */

struct batch {
    struct chunk whole; /* all texts; its memory is that of the first thread that works apart */
    int64_t tokens, chunks;
    int64_t *ends; /* texts before the end of each chunk */
    int64_t floats_per_thread;
};

/* Cut the batch into `chunks` of nearly the same number of tokens, some of them perhaps empty: a text goes where its
 * middle lies. Returns the tokens of the largest. */
static int64_t cut(struct batch *b, int64_t chunks) {
    int64_t text = 0, largest = 0;
    b->chunks = chunks;
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        int64_t first = text;
        while (text < b->whole.texts && (b->whole.starts[text] + b->whole.lengths[text] / 2) * chunks / b->tokens <= chunk)
            text++;
        b->ends[chunk] = text;
        int64_t tokens = b->whole.starts[text] - b->whole.starts[first];
        largest = tokens > largest ? tokens : largest;
    }
    return largest;
}

/* Decide how `threads` work, and cut the batch for it. Returns the tokens of the largest chunk. */
static int64_t plan(struct batch *b, int threads) {
    int64_t apart = round_up((b->tokens + CHUNK_TOKENS - 1) / CHUNK_TOKENS, threads);
    int64_t largest = cut(b, apart);
    b->whole.threads = 1;
    if (threads == 1) return largest;
    /* Apart, the last chunk may keep all the others waiting. */
    int64_t slowest = largest * (apart / threads);
    if (b->tokens >= threads * APART_TOKENS && slowest * threads <= b->tokens + b->tokens / 8) return largest;
    b->whole.threads = threads;
    return cut(b, (b->tokens + TOGETHER_TOKENS - 1) / TOGETHER_TOKENS);
}

static void encode_chunk(void *context, long item, int thread) {
    const struct batch *b = context;
    int64_t first = item ? b->ends[item - 1] : 0;
    struct chunk c = b->whole;
    int64_t memory = thread * b->floats_per_thread;
    c.lengths += first, c.starts += first, c.vectors += first * c.bert->width;
    c.texts = b->ends[item] - first, c.rows = c.starts[c.texts] - c.starts[0], c.token_ids += c.starts[0];
    c.x += memory, c.query_key_value += memory, c.mixed += memory, c.inner += memory, c.attention += memory;
    encode(&c);
}

/* Memory that grows to the largest batch's need, which the length of a text bounds, and is kept. */
struct scratch {
    void *memory;
    size_t bytes;
};

static void *reserve(struct scratch *scratch, size_t bytes) {
    if (bytes > scratch->bytes) {
        free(scratch->memory);
        scratch->bytes = 0;
        if (posix_memalign(&scratch->memory, 64, bytes)) scratch->memory = NULL;
        else scratch->bytes = bytes;
    }
    return scratch->memory;
}

static int embed(struct batch *b, int threads) {
    static struct scratch activations, table;
    const struct akidb_bert *bert = b->whole.bert;
    /* There are never more chunks than tokens plus threads. */
    int64_t *starts = reserve(&table, (size_t)(b->whole.texts + 1 + b->tokens / CHUNK_TOKENS + 1 + threads) * sizeof *starts);
    if (!starts) return AKIDB_NO_MEMORY;
    int64_t longest = 0;
    starts[0] = 0;
    for (int64_t text = 0; text < b->whole.texts; text++) {
        int64_t length = b->whole.lengths[text];
        starts[text + 1] = starts[text] + length;
        longest = length > longest ? length : longest;
    }
    b->whole.starts = starts;
    b->ends = starts + b->whole.texts + 1;
    int64_t rows = plan(b, threads), executors = b->whole.threads == 1 ? threads : 1;
    struct chunk *c = &b->whole;
    int64_t x = round_up(rows * bert->width, ALIGNMENT);
    int64_t inner = round_up(least(rows, INNER_ROWS) * (bert->inner + INNER_PADDING), ALIGNMENT);
    c->attention_floats = attention_floats(longest, bert->width / bert->heads);
    b->floats_per_thread = 5 * x + inner + c->threads * c->attention_floats;
    c->x = reserve(&activations, (size_t)(executors * b->floats_per_thread) * sizeof(float));
    if (!c->x) return AKIDB_NO_MEMORY;
    c->query_key_value = c->x + x;
    c->mixed = c->query_key_value + 3 * x;
    c->inner = c->mixed + x;
    c->attention = c->inner + inner;
    atomic_int is_unusable = 0;
    c->is_unusable = &is_unusable;
    if (executors > 1) share(executors, encode_chunk, b, b->chunks);
    else
        for (int64_t chunk = 0; chunk < b->chunks; chunk++) encode_chunk(b, chunk, 0);
    return atomic_load(&is_unusable) ? AKIDB_UNUSABLE : AKIDB_DONE;
}

int akidb_embed(const struct akidb_bert *bert, int threads, int pooling, const uint32_t *lengths, int64_t texts,
                const uint32_t *token_ids, float *vectors) {
    static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;
    struct batch b = {.whole = {.bert = bert, .pooling = pooling, .lengths = lengths, .texts = texts,
                                .token_ids = token_ids, .vectors = vectors}};
    for (int64_t text = 0; text < texts; text++) b.tokens += lengths[text];
    pthread_mutex_lock(&one_at_a_time);
    int outcome = embed(&b, reserve_threads(threads));
    pthread_mutex_unlock(&one_at_a_time);
    return outcome;
}

int akidb_panel(void) { return PANEL; }

void akidb_pack(const float *weight, int64_t outputs, int64_t inputs, float scale, float *panels) {
    for (int64_t panel = 0; panel < outputs; panel += PANEL)
        for (int64_t k = 0; k < inputs; k++)
            for (int64_t lane = 0; lane < PANEL; lane++) *panels++ = weight[(panel + lane) * inputs + k] * scale;
}
