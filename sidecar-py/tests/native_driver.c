/* Runs the kernels without Python, so that sanitizers see everything: every path, on memory that is exactly as large as
 * the headers say, from several threads at once. See test_native_sources.py.
 *
 * Vectors are compared to the last bit: with other numbers of threads, alone, and computed at the same time as others.
 * That they are the right ones is for test_kernels.py and test_qwen3.py to say. */

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bert.h"
#include "qwen3.h"
#include "threads.h"

enum { VOCABULARY = 50, PLACES = 560, MOST_TEXTS = 40, MOST_PIECES = 4096, CALLERS = 3, POOLINGS = 3 };

static void *pieces[MOST_PIECES];
static int piece_count;

static void require(int is_true, const char *what) {
    if (is_true) return;
    fprintf(stderr, "native_driver: %s\n", what);
    exit(1);
}

static void *take(int64_t bytes) {
    require(piece_count < MOST_PIECES, "too many pieces of memory");
    void *piece = malloc((size_t)bytes);
    require(piece != NULL, "no memory");
    return pieces[piece_count++] = piece;
}

static uint32_t random_bits(void) {
    static uint32_t state = 1;
    state ^= state << 13, state ^= state >> 17, state ^= state << 5;
    return state;
}

static int64_t below(int64_t end) { return (int64_t)(random_bits() % (uint32_t)end); }

static float *numbers(int64_t count, float middle) {
    float *made = take(count * (int64_t)sizeof *made);
    for (int64_t index = 0; index < count; index++) made[index] = middle + 0.3f * ((float)below(2001) / 1000 - 1);
    return made;
}

/* `bits` of 32: plain numbers. */
static struct akidb_matrix matrix(int64_t outputs, int64_t inputs, int64_t bits) {
    if (bits == 32) {
        float *panels = take(outputs * inputs * (int64_t)sizeof *panels);
        akidb_pack(numbers(outputs * inputs, 0), outputs, inputs, 0.5f, panels);
        return (struct akidb_matrix){.numbers = panels};
    }
    int64_t stored = bits == 4 ? 4 : 8, group = 32, words = outputs * inputs * bits / 32;
    uint32_t *weight = take(words * (int64_t)sizeof *weight);
    for (int64_t index = 0; index < words; index++) weight[index] = random_bits();
    uint8_t *codes = take(outputs * inputs * stored / 8);
    akidb_pack_codes(weight, outputs, inputs, bits, codes);
    float *scales = numbers(outputs * inputs / group, 0), *shifts = numbers(outputs * inputs / group, 0);
    for (int64_t index = 0; index < outputs * inputs / group; index++) scales[index] /= (float)(1 << bits);
    return (struct akidb_matrix){.codes = codes, .scales = scales, .shifts = shifts, .bits = stored, .group = group};
}

static struct akidb_linear linear(int64_t outputs, int64_t inputs, int64_t bits, int has_bias) {
    return (struct akidb_linear){matrix(outputs, inputs, bits), has_bias ? numbers(outputs, 0) : NULL};
}

static struct akidb_norm norm(int64_t width) { return (struct akidb_norm){numbers(width, 1), numbers(width, 0)}; }

static struct akidb_bert *bert(int64_t heads, int64_t size, int64_t inner) {
    int64_t width = heads * size, count = 2;
    struct akidb_bert_layer *layers = take(count * (int64_t)sizeof *layers);
    for (int64_t index = 0; index < count; index++)
        layers[index] = (struct akidb_bert_layer){
            .query_key_value = linear(3 * width, width, 32, 1), .attention_output = linear(width, width, 32, 1),
            .attention_norm = norm(width), .up = linear(inner, width, 32, 1), .down = linear(width, inner, 32, 1),
            .output_norm = norm(width)};
    struct akidb_bert *made = take(sizeof *made);
    *made = (struct akidb_bert){.layer_count = count, .width = width, .heads = heads, .inner = inner, .epsilon = 1e-12f,
                                .words = numbers(VOCABULARY * width, 0), .positions = numbers(PLACES * width, 0),
                                .padding = 1, .padding_position = numbers(width, 0), .norm = norm(width),
                                .layers = layers};
    return made;
}

static struct akidb_qwen3 *qwen3(int64_t width, int64_t heads, int64_t key_heads, int64_t size, int64_t inner,
                                 int64_t bits, int has_bias) {
    int64_t count = 2, deepest = width > inner ? width : inner;
    deepest = heads * size > deepest ? heads * size : deepest;
    struct akidb_qwen3_layer *layers = take(count * (int64_t)sizeof *layers);
    for (int64_t index = 0; index < count; index++)
        layers[index] = (struct akidb_qwen3_layer){
            .attention_norm = numbers(width, 1),
            .query_key_value = linear((heads + 2 * key_heads) * size, width, bits, has_bias),
            .query_norm = numbers(size, 1), .key_norm = numbers(size, 1),
            .attention_output = linear(width, heads * size, bits, has_bias), .feed_forward_norm = numbers(width, 1),
            .gate = matrix(inner, width, bits), .up = linear(inner, width, bits, 0),
            .down = linear(width, inner, bits, 0)};
    struct akidb_qwen3 *made = take(sizeof *made);
    *made = (struct akidb_qwen3){.layer_count = count, .width = width, .heads = heads, .key_heads = key_heads,
                                 .size = size, .inner = inner, .deepest = bits == 32 ? 0 : deepest, .epsilon = 1e-6f,
                                 .cosines = numbers(PLACES * size / 2, 0), .sines = numbers(PLACES * size / 2, 0),
                                 .norm = numbers(width, 1), .layers = layers};
    return made;
}

/* One of the two. */
struct model {
    const struct akidb_bert *bert;
    const struct akidb_qwen3 *qwen3;
};

static int64_t width_of(const struct model *model) { return model->bert ? model->bert->width : model->qwen3->width; }

/* Texts whose inputs lie in memory of their own, because a kernel may not read beyond them. */
struct batch {
    int64_t texts, tokens;
    uint32_t *lengths, *token_ids;
    float *rows;
};

static struct batch batch(const struct model *model, int64_t texts, const uint32_t *lengths) {
    struct batch made = {.texts = texts, .lengths = malloc((size_t)texts * sizeof *lengths)};
    for (int64_t text = 0; text < texts; text++) made.tokens += made.lengths[text] = lengths[text];
    made.token_ids = malloc((size_t)made.tokens * sizeof *made.token_ids);
    made.rows = malloc((size_t)(made.tokens * width_of(model)) * sizeof *made.rows);
    for (int64_t token = 0; token < made.tokens; token++) made.token_ids[token] = (uint32_t)below(VOCABULARY);
    for (int64_t index = 0; index < made.tokens * width_of(model); index++) made.rows[index] = (float)below(200) / 100 - 1;
    return made;
}

static struct batch part_of(const struct batch *whole, const struct model *model, int64_t text) {
    struct batch one = batch(model, 1, whole->lengths + text);
    int64_t first = 0, width = width_of(model);
    for (int64_t before = 0; before < text; before++) first += whole->lengths[before];
    memcpy(one.token_ids, whole->token_ids + first, (size_t)one.tokens * sizeof *one.token_ids);
    memcpy(one.rows, whole->rows + first * width, (size_t)(one.tokens * width) * sizeof *one.rows);
    return one;
}

static void release(struct batch *b) { free(b->lengths), free(b->token_ids), free(b->rows); }

static int try_to_embed(const struct model *model, const struct batch *b, int threads, int pooling, float *vectors) {
    if (model->bert) return akidb_embed_bert(model->bert, threads, pooling, b->lengths, b->texts, b->token_ids, vectors);
    return akidb_embed_qwen3(model->qwen3, threads, pooling, b->lengths, b->texts, b->rows, vectors);
}

static float *embed(const struct model *model, const struct batch *b, int threads, int pooling) {
    float *vectors = malloc((size_t)(b->texts * width_of(model)) * sizeof *vectors);
    require(try_to_embed(model, b, threads, pooling, vectors) == AKIDB_DONE, "a batch was not computed");
    return vectors;
}

static void require_same(float *vectors, const float *expected, int64_t count, const char *what) {
    require(memcmp(vectors, expected, (size_t)count * sizeof *vectors) == 0, what);
    free(vectors);
}

/* A batch with one thread and with several, and one of its texts alone. */
static void check(const struct model *model, int pooling, int64_t texts, const uint32_t *lengths) {
    static const int threads[] = {2, 3, 5};
    int64_t width = width_of(model), text = below(texts);
    struct batch b = batch(model, texts, lengths), one = part_of(&b, model, text);
    float *expected = embed(model, &b, 1, pooling);
    for (int index = 0; index < (b.tokens < 100 ? 3 : 1); index++)
        require_same(embed(model, &b, threads[index], pooling), expected, texts * width, "threads change a vector");
    require_same(embed(model, &one, 2, pooling), expected + text * width, width, "neighbours change a vector");
    free(expected);
    release(&one);
    release(&b);
}

/* Texts of one token; of less, just and more than a tile, a panel, a thread's part, and a part of the queries. */
static void check_shapes(const struct model *model, int has_long_texts) {
    static const uint32_t fixed[][4] = {{1}, {2, 1}, {33, 1, 7}, {97, 96, 95, 1}, {PLACES}, {513, 1}};
    uint32_t lengths[MOST_TEXTS];
    for (int shape = 0; shape < (has_long_texts ? 6 : 4); shape++) {
        int64_t texts = 0;
        while (texts < 4 && fixed[shape][texts]) texts++;
        check(model, shape % POOLINGS, texts, fixed[shape]);
    }
    for (int pooling = 0; pooling < POOLINGS; pooling++) {
        int64_t texts = 1 + below(MOST_TEXTS);
        for (int64_t text = 0; text < texts; text++) lengths[text] = (uint32_t)(1 + below(text % 5 ? 6 : 30));
        check(model, pooling, texts, lengths);
    }
}

/* ---- Several callers at once ---- */

struct caller {
    const struct model *model;
    struct batch batch;
    float *expected;
    int threads;
};

static void *call(void *argument) {
    const struct caller *me = argument;
    for (int round = 0; round < 10; round++)
        require_same(embed(me->model, &me->batch, me->threads, 0), me->expected,
                     me->batch.texts * width_of(me->model), "callers disturb one another");
    return NULL;
}

static int is_over;

static void *watch(void *argument) {
    uint64_t *seen = argument;
    while (!__atomic_load_n(&is_over, __ATOMIC_RELAXED)) {
        uint64_t now = __atomic_load_n(&akidb_steps_done, __ATOMIC_RELAXED);
        require(now >= *seen, "the count of steps went down");
        *seen = now;
    }
    return NULL;
}

static void check_callers(const struct model *models) {
    static const uint32_t lengths[] = {30, 1, 12, 70, 5, 20};
    struct caller callers[CALLERS];
    pthread_t threads[CALLERS], watcher;
    uint64_t seen = 0;
    for (int index = 0; index < CALLERS; index++) {
        struct caller *caller = &callers[index];
        *caller = (struct caller){.model = &models[index], .threads = 1 + index * 2};
        caller->batch = batch(caller->model, index % 2 ? 6 : 2, lengths);
        caller->expected = embed(caller->model, &caller->batch, 1, 0);
    }
    require(!pthread_create(&watcher, NULL, watch, &seen), "no thread");
    for (int index = 0; index < CALLERS; index++)
        require(!pthread_create(&threads[index], NULL, call, &callers[index]), "no thread");
    for (int index = 0; index < CALLERS; index++) {
        pthread_join(threads[index], NULL);
        release(&callers[index].batch);
        free(callers[index].expected);
    }
    __atomic_store_n(&is_over, 1, __ATOMIC_RELAXED);
    pthread_join(watcher, NULL);
    require(akidb_steps_done >= seen && seen > 0, "no step was counted");
}

static void check_unusable(const struct model *model) {
    static const uint32_t lengths[] = {3, 4};
    struct batch b = batch(model, 2, lengths);
    float *vectors = malloc((size_t)(2 * width_of(model)) * sizeof *vectors);
    b.rows[0] = NAN;
    require(try_to_embed(model, &b, 2, AKIDB_MEAN, vectors) == AKIDB_UNUSABLE, "a vector of NaN was not noticed");
    free(vectors);
    release(&b);
}

int main(void) {
    int64_t panel = akidb_panel(), unit = panel < 32 ? 32 : panel; /* groups of codes have 32 */
    struct model models[] = {
        {.bert = bert(1, panel, panel)},
        {.qwen3 = qwen3(unit, 4, 2, unit, unit * 3, 4, 0)},
        {.qwen3 = qwen3(unit * 2, 3, 1, unit, unit, 32, 1)},
        {.bert = bert(3, panel * 2, panel * 5)},
        {.qwen3 = qwen3(unit, 2, 2, unit, unit * 2, 2, 0)},
        {.qwen3 = qwen3(unit, 2, 1, unit, unit * 2, 3, 1)},
        {.qwen3 = qwen3(unit, 2, 1, unit, unit * 2, 5, 0)},
        {.qwen3 = qwen3(unit, 2, 1, unit, unit * 2, 6, 0)},
        {.qwen3 = qwen3(unit, 2, 1, unit, unit * 2, 8, 0)},
    };
    int64_t count = (int64_t)(sizeof models / sizeof *models);
    for (int64_t index = 0; index < count; index++) check_shapes(&models[index], index < 2);
    check_unusable(&models[1]);
    check_callers(models);
    while (piece_count) free(pieces[--piece_count]);
    printf("%d models, panels of %d columns, %llu steps\n", (int)count, (int)panel, (unsigned long long)akidb_steps_done);
    return 0;
}
