/* Batches: how texts are cut into chunks, who computes them, and how their vectors are made of rows.
 *
 * Texts are neither padded nor sorted: linear layers see rows of tokens, and attention finds queries, keys and values
 * where the product left them. The order of every sum depends on nothing but the text: neither neighbours nor threads
 * change a bit of its vector.
 *
 * A batch is cut into *chunks* of whole texts. Threads work in one of two ways, see plan():
 *   apart     each computes a chunk from the first layer to the last, and nobody waits for anybody;
 *   together  they share the panels, rows and heads of every step of one chunk: for a few short texts.
 */

#include "batches.h"

#include <float.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>

#include "threads.h"

/* Chosen by the size of caches. Half and double of CHUNK_TOKENS could not be told from noise. */
enum {
    CHUNK_TOKENS = 192,    /* apart: activations stay near, and weights are read from memory seldom enough */
    TOGETHER_TOKENS = 512, /* together: the same for all threads' caches */
    APART_TOKENS = 96,     /* fewer per thread are computed together: weights are then read once, not by each */
    ITEMS_PER_THREAD = 4,  /* at least, so that they end at about the same time */
};

/* ---- Steps that networks share ---- */

/* Apply a function to PANEL columns of some rows. */
#define FOR_PANEL(function, rows, c, stride)               \
    for (long row = 0; row < (rows); row++)                \
        for (long lane = 0; lane < PANEL; lane += LANES)   \
            store((c) + row * (stride) + lane, function(load((c) + row * (stride) + lane)))

/* A panel as numbers: as stored, or decoded into the scratch. */
static const float *panel_of(const struct akidb_matrix *matrix, int64_t depth, int64_t panel, float *restrict scratch) {
    if (matrix->numbers) return matrix->numbers + panel * PANEL * depth;
    int64_t groups = depth / matrix->group;
    const uint8_t *codes = matrix->codes + panel * PANEL * depth * matrix->bits / 8;
    for (int64_t group = 0; group < groups; group++)
        for (int64_t lane = 0; lane < PANEL; lane += LANES) {
            vector scale = load(matrix->scales + (panel * groups + group) * PANEL + lane);
            vector shift = load(matrix->shifts + (panel * groups + group) * PANEL + lane);
            float *to = scratch + group * matrix->group * PANEL + lane;
            const uint8_t *from = codes + group * matrix->group * matrix->bits / 8 * PANEL + lane;
            if (matrix->bits == 4)
                for (int64_t row = 0; row < matrix->group; row += 2, to += 2 * PANEL, from += PANEL) {
                    bits pair = load_bytes(from);
                    store(to, numbers_of(pair & 15) * scale + shift);
                    store(to + PANEL, numbers_of(pair >> 4) * scale + shift);
                }
            else
                for (int64_t row = 0; row < matrix->group; row++, to += PANEL, from += PANEL)
                    store(to, numbers_of(load_bytes(from)) * scale + shift);
        }
    return scratch;
}

/* One panel's columns of rows first .. end - 1, combined with what is there. */
static void product_panel(const struct product *p, const float *b, const float *bias, float *c, long first, long end,
                          enum combination combination) {
    for (long index = 0, tiles = tile_count(end - first); index < tiles; index++) {
        long start = first + part(end - first, index, tiles), rows = first + part(end - first, index + 1, tiles) - start;
        any_tile(rows, p->depth, p->a + start * p->a_stride, p->a_stride, b, PANEL, bias, c + start * p->c_stride,
                 p->c_stride, combination);
    }
}

struct product_job {
    const struct chunk *chunk;
    struct product product;
    int64_t rows, row_parts;
};

static void product_item(void *context, long item, int thread) {
    const struct product_job *job = context;
    const struct product *p = &job->product;
    int64_t panel = item / job->row_parts, row_part = item % job->row_parts;
    int64_t first = part(job->rows, row_part, job->row_parts), end = part(job->rows, row_part + 1, job->row_parts);
    float *scratch = job->chunk->panels + thread * job->chunk->network->deepest * PANEL;
    float *c = p->c + panel * PANEL, *rows = c + first * p->c_stride;
    if (p->gate) {
        product_panel(p, panel_of(p->gate, p->depth, panel, scratch), NULL, c, first, end, SET);
        FOR_PANEL(silu, end - first, rows, p->c_stride);
    }
    product_panel(p, panel_of(p->b, p->depth, panel, scratch), p->bias ? p->bias + panel * PANEL : NULL, c, first, end,
                  p->gate ? MULTIPLY : p->adds ? ADD : SET);
    if (p->activation == GELU) FOR_PANEL(gelu, end - first, rows, p->c_stride);
}

void multiply(const struct chunk *c, struct product product, int64_t rows, int64_t columns) {
    int64_t panels = columns / PANEL, wanted = c->threads < 2 ? 1 : c->threads * ITEMS_PER_THREAD;
    int64_t row_parts = least((wanted + panels - 1) / panels, tile_count(rows));
    struct product_job job = {c, product, rows, row_parts};
    share(c->threads, product_item, &job, panels * row_parts);
}

/* Turn a row of scores (in powers of two) into weights; return one over their sum. */
float weigh_row(float *restrict scores, int64_t length, int64_t padded) {
    for (int64_t column = length; column < padded; column++) scores[column] = -FLT_MAX;
    /* Comparisons and powers would swallow what is not finite: its difference from itself is not zero. */
    vector largest = load(scores), sums = largest - largest;
    for (int64_t column = LANES; column < padded; column += LANES) {
        vector score = load(scores + column);
        largest = larger(score, largest);
        sums += score - score;
    }
    vector top = all(largest_of(largest));
    for (int64_t column = 0; column < padded; column += LANES) {
        vector weights = power_of_two(load(scores + column) - top);
        store(scores + column, weights);
        sums += weights;
    }
    return 1 / sum_of(sums);
}

/* ---- Pooling ---- */

struct pooling {
    const struct chunk *chunk;
    const float *rows;
};

static void pool_item(void *context, long text, int thread) {
    (void)thread;
    const struct pooling *job = context;
    const struct chunk *c = job->chunk;
    int64_t width = c->network->width, length = c->lengths[text];
    const float *rows = job->rows + row_of(c, text) * width;
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
    c.lengths += first, c.starts += first, c.vectors += first * c.network->width;
    c.texts = b->ends[item] - first, c.rows = c.starts[c.texts] - c.starts[0];
    c.memory += thread * b->floats_per_thread, c.panels += thread * b->floats_per_thread;
    c.longest = 0;
    for (int64_t text = 0; text < c.texts; text++) c.longest = c.lengths[text] > c.longest ? c.lengths[text] : c.longest;
    if (!c.texts) return;
    struct pooling job = {&c, c.network->encode(&c)};
    share(c.threads, pool_item, &job, c.texts);
}

/* Memory that grows to the largest batch's need and is kept, unless that was a very long text's. */
struct scratch {
    void *memory;
    size_t bytes;
};

static const size_t most_kept_bytes = 64 << 20;

static void release(struct scratch *scratch) {
    free(scratch->memory);
    *scratch = (struct scratch){NULL, 0};
}

static void *reserve(struct scratch *scratch, size_t bytes) {
    if (bytes > scratch->bytes) {
        release(scratch);
        if (posix_memalign(&scratch->memory, 64, bytes)) scratch->memory = NULL;
        else scratch->bytes = bytes;
    }
    return scratch->memory;
}

static int embed(struct batch *b, int threads) {
    static struct scratch activations, table;
    struct chunk *c = &b->whole;
    /* There are never more chunks than tokens plus threads. */
    int64_t *starts = reserve(&table, (size_t)(c->texts + 1 + b->tokens / CHUNK_TOKENS + 1 + threads) * sizeof *starts);
    if (!starts) return AKIDB_NO_MEMORY;
    int64_t longest = 0;
    starts[0] = 0;
    for (int64_t text = 0; text < c->texts; text++) {
        int64_t length = c->lengths[text];
        starts[text + 1] = starts[text] + length;
        longest = length > longest ? length : longest;
    }
    c->starts = starts;
    b->ends = starts + c->texts + 1;
    int64_t rows = plan(b, threads), executors = c->threads == 1 ? threads : 1;
    int64_t floats = round_up(c->network->floats(c->network->model, rows, longest, c->threads), ALIGNMENT);
    b->floats_per_thread = floats + c->threads * c->network->deepest * PANEL;
    c->memory = reserve(&activations, (size_t)(executors * b->floats_per_thread) * sizeof(float));
    if (!c->memory) return AKIDB_NO_MEMORY;
    c->panels = c->memory + floats;
    atomic_int is_unusable = 0;
    c->is_unusable = &is_unusable;
    if (executors > 1) share(executors, encode_chunk, b, b->chunks);
    else
        for (int64_t chunk = 0; chunk < b->chunks; chunk++) encode_chunk(b, chunk, 0);
    if (activations.bytes > most_kept_bytes) release(&activations);
    return atomic_load(&is_unusable) ? AKIDB_UNUSABLE : AKIDB_DONE;
}

int embed_batch(const struct network *network, int threads, int pooling, const uint32_t *lengths, int64_t texts,
                const void *inputs, float *vectors) {
    static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;
    struct batch b = {.whole = {.network = network, .inputs = inputs, .pooling = pooling, .lengths = lengths,
                                .texts = texts, .vectors = vectors}};
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

static unsigned code_of(const uint8_t *row, int64_t index, int64_t bits) {
    int64_t start = index * bits, byte = start / 8;
    unsigned here = row[byte] | (start % 8 + bits > 8 ? row[byte + 1] << 8 : 0);
    return here >> start % 8 & ((1u << bits) - 1);
}

void akidb_pack_codes(const uint32_t *weight, int64_t outputs, int64_t inputs, int64_t bits, uint8_t *codes) {
    const uint8_t *bytes = (const uint8_t *)weight; /* the streams are little-endian */
    int64_t row_bytes = inputs * bits / 8, step = bits == 4 ? 2 : 1;
    for (int64_t panel = 0; panel < outputs; panel += PANEL)
        for (int64_t k = 0; k < inputs; k += step)
            for (int64_t lane = 0; lane < PANEL; lane++) {
                const uint8_t *row = bytes + (panel + lane) * row_bytes;
                *codes++ = (uint8_t)(step == 2 ? row[k / 2] : code_of(row, k, bits));
            }
}
