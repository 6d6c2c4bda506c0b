/* One video from the payload of its record, if that is laid out as all writers we know lay it out.

Whatever is not - another order, damage, a stream of another size, a label out of range - is answered with 0,
and the caller leaves the record to Python, which reads every valid record and says what is wrong with the
others. So nothing here has to explain itself, and nothing is accepted that Python would read in another way:
nextvlad/data/usual_layout.py is the same in Python. Every step stays inside the bytes it was given. */

#ifndef NEXTVLAD_USUAL_VIDEO_H
#define NEXTVLAD_USUAL_VIDEO_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#define MOST_STREAMS 8
#define LARGE 65536 /* bytes of frames; batches of such videos are larger than caches */
#define FIRST 0x0A /* tags: field 1, 2 or 3, a length follows */
#define SECOND 0x12
#define THIRD 0x1A
#define BYTES_LIST FIRST /* the same, in a Feature */
#define FLOAT_LIST SECOND
#define INT64_LIST THIRD
#define NOTHING 0 /* a feature without a list */

typedef struct {
    const uint8_t *at, *end;
} Bytes;

typedef struct {
    Bytes name;
    size_t size; /* values a frame */
} Stream;

/* What a reader wants; the same for all its records. */
typedef struct {
    size_t num_streams;
    Stream streams[MOST_STREAMS];
    size_t max_frames;
    int64_t num_classes; /* labels lie below it; 0: labels are not wanted, and may be anything */
    int check_origin;    /* whether the provenance has to be `origin`; nothing: none */
    Bytes origin;
} Plan;

/* The frames of a stream: `count` times a header and the bytes of a frame. */
typedef struct {
    const uint8_t *at;
    size_t count, header, stride;
} Frames;

typedef struct {
    Bytes id, labels; /* labels: packed varints */
    size_t num_labels;
    Frames frames[MOST_STREAMS];
} Video;

static size_t size_of(Bytes bytes) { return (size_t)(bytes.end - bytes.at); }

static int is(Bytes bytes, const char *word)
{
    return size_of(bytes) == strlen(word) && memcmp(bytes.at, word, size_of(bytes)) == 0;
}

static int are_same(Bytes a, Bytes b)
{
    return size_of(a) == size_of(b) && memcmp(a.at, b.at, size_of(a)) == 0;
}

static int is_ascii(Bytes bytes)
{
    for (const uint8_t *at = bytes.at; at < bytes.end; at++)
        if (*at >= 0x80)
            return 0;
    return 1;
}

/* A number of at most 56 bits, which is never negative. */
static int take_number(Bytes *from, uint64_t *number)
{
    *number = 0;
    for (int shift = 0; shift < 56 && from->at < from->end; shift += 7) {
        uint8_t byte = *from->at++;
        *number |= (uint64_t)(byte & 0x7F) << shift;
        if (byte < 0x80)
            return 1;
    }
    return 0;
}

/* The field `tag`, which has to come next. */
static int take_field(Bytes *from, uint8_t tag, Bytes *content)
{
    uint64_t size;
    if (from->at >= from->end || *from->at != tag)
        return 0;
    from->at++;
    if (!take_number(from, &size) || size > size_of(*from))
        return 0;
    content->at = from->at;
    content->end = from->at = from->at + size;
    return 1;
}

/* The field `tag`, with nothing behind it. */
static int only_field(Bytes from, uint8_t tag, Bytes *content)
{
    return take_field(&from, tag, content) && from.at == from.end;
}

static int take_labels(Bytes packed, int64_t num_classes, Video *video)
{
    video->labels = packed;
    video->num_labels = 0;
    while (packed.at < packed.end) {
        uint64_t label;
        if (!take_number(&packed, &label) || (num_classes && label >= (uint64_t)num_classes))
            return 0;
        video->num_labels++;
    }
    return 1;
}

/* Numbers that nobody asked for are read all the same: Python would find the damage in them. */
static int is_sound(uint8_t kind, Bytes values)
{
    Video nobody;
    if (kind == INT64_LIST)
        return take_labels(values, 0, &nobody);
    return kind == BYTES_LIST || size_of(values) % 4 == 0;
}

static int read_context(Bytes context, const Plan *plan, Video *video)
{
    int has_id = 0, has_labels = 0, has_origin = 0;
    while (context.at < context.end) {
        Bytes entry, name, value, list, values;
        if (!take_field(&context, FIRST, &entry) || !take_field(&entry, FIRST, &name) ||
            !only_field(entry, SECOND, &value) || !is_ascii(name))
            return 0;
        uint8_t kind = NOTHING;
        int has_values = 0;
        values = value;
        if (value.at < value.end) {
            kind = *value.at;
            if ((kind != BYTES_LIST && kind != FLOAT_LIST && kind != INT64_LIST) ||
                !only_field(value, kind, &list))
                return 0;
            has_values = list.at < list.end;
            if (has_values && !only_field(list, FIRST, &values))
                return 0;
        }
        if (is(name, "id") || is(name, "video_id")) {
            if (has_id++ || kind != BYTES_LIST || !has_values)
                return 0;
            video->id = values;
        } else if (is(name, "labels")) {
            if (has_labels++ || (kind != INT64_LIST && kind != NOTHING) ||
                (has_values && !take_labels(values, plan->num_classes, video)))
                return 0;
        } else if (is(name, "provenance") && plan->check_origin) {
            if (has_origin++ || kind != BYTES_LIST || !has_values || !are_same(values, plan->origin))
                return 0;
        } else if (has_values && !is_sound(kind, values)) {
            return 0;
        }
    }
    return has_id && (has_origin || !plan->check_origin || size_of(plan->origin) == 0);
}

/* What the first frame of a list says, and whether the others that are wanted begin as it does. */
static int read_frames(Bytes list, size_t size, size_t max_frames, Frames *frames)
{
    Bytes rest = list, feature, bytes_list, value;
    frames->at = list.at;
    if (list.at == list.end)
        return 1;
    if (!take_field(&rest, FIRST, &feature) || !only_field(feature, FIRST, &bytes_list) ||
        !only_field(bytes_list, FIRST, &value) || size_of(value) != size)
        return 0;
    frames->header = (size_t)(value.at - list.at);
    frames->stride = frames->header + size;
    frames->count = size_of(list) / frames->stride;
    if (frames->count >= max_frames)
        frames->count = max_frames;
    else if (size_of(list) % frames->stride)
        return 0;
    for (size_t frame = 1; frame < frames->count; frame++)
        if (memcmp(list.at + frame * frames->stride, list.at, frames->header))
            return 0;
    return 1;
}

static int read_lists(Bytes lists, const Plan *plan, Video *video)
{
    int has[MOST_STREAMS] = {0}, others = 0;
    size_t num_found = 0;
    if (lists.at == lists.end)
        return 0;
    while (lists.at < lists.end) {
        Bytes entry, name, list;
        size_t stream = 0;
        if (!take_field(&lists, FIRST, &entry) || !take_field(&entry, FIRST, &name) ||
            !only_field(entry, SECOND, &list))
            return 0;
        while (stream < plan->num_streams && !are_same(name, plan->streams[stream].name))
            stream++;
        if (stream == plan->num_streams) {
            others = 1;
            if (!is_ascii(name))
                return 0;
        } else if (has[stream]++ || !read_frames(list, plan->streams[stream].size, plan->max_frames,
                                                 &video->frames[stream])) {
            return 0;
        } else {
            num_found++;
        }
    }
    /* A stream that is missing is a video without sound; if there is another instead, a wrong name. */
    return num_found == plan->num_streams || !others;
}

static int read_video(Bytes payload, const Plan *plan, Video *video)
{
    Bytes context, lists;
    memset(video, 0, sizeof *video);
    return take_field(&payload, FIRST, &context) && only_field(payload, SECOND, &lists) &&
           read_context(context, plan, video) && read_lists(lists, plan, video);
}

#ifdef __SSE2__
/* Memory that is written whole need not be read first, as a cache would: a tenth of all the time of reading, where
   batches are larger than caches. Both sides move by 16 bytes. */
static void copy_past_the_cache(uint8_t *into, const uint8_t *from, size_t size)
{
    for (size_t at = 0; at < size; at += 16)
        _mm_stream_si128((__m128i *)(into + at), _mm_loadu_si128((const __m128i *)(from + at)));
}
#endif

static void copy_frames(const Frames *frames, uint8_t *into)
{
    size_t size = frames->stride - frames->header;
    const uint8_t *from = frames->at + frames->header;
#ifdef __SSE2__
    if (frames->count * size >= LARGE && size % 16 == 0 && (uintptr_t)into % 16 == 0) {
        for (size_t frame = 0; frame < frames->count; frame++, from += frames->stride, into += size)
            copy_past_the_cache(into, from, size);
        _mm_sfence(); /* before anybody is told that it is there */
        return;
    }
#endif
    for (size_t frame = 0; frame < frames->count; frame++, from += frames->stride, into += size)
        memcpy(into, from, size);
}

/* As many as were counted at most, for which there is room, should somebody write into them meanwhile. */
static void copy_labels(const Video *video, int64_t *into)
{
    Bytes packed = video->labels;
    uint64_t label;
    for (size_t number = 0; number < video->num_labels && take_number(&packed, &label); number++)
        into[number] = (int64_t)label;
}

#endif
