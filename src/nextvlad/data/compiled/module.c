/* nextvlad.data._usual_records: records of the usual layout, many in one call, without Python around each.

Every function stops before the first record that is for Python (see usual_video.h), or that has no room, or of
which a part is still to come. The GIL is released while bytes are looked at. What the functions take and give
is said in nextvlad/data/_usual_records.pyi. */

#include <pyconfig.h> /* says whether this Python has a GIL */
#ifndef Py_GIL_DISABLED
#define Py_LIMITED_API 0x030B0000 /* one build for Python 3.11 and all that follow */
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "crc32c.h"
#include "usual_video.h"

#define HEADER 12 /* of a record: its length and the checksum of that */
#define FOOTER 4
#define LONGEST ((uint64_t)(SIZE_MAX >> 8)) /* bytes of a payload; so that no sum of sizes overflows */

typedef enum { USUAL, UNUSUAL, INCOMPLETE } Found;

static uint32_t masked(uint32_t crc) { return (crc >> 15 | crc << 17) + 0xA282EAD8u; }

static uint32_t uint32_at(const uint8_t *at)
{
    uint32_t number;
    memcpy(&number, at, 4);
    return number;
}

/* The payload of the record at data.at, both checksums verified; `size`: bytes of the whole record. */
static Found find_payload(Bytes data, Bytes *payload, size_t *size)
{
    uint64_t length;
    *size = HEADER;
    if (size_of(data) < HEADER)
        return INCOMPLETE;
    memcpy(&length, data.at, 8);
    if (masked(crc32c(data.at, 8)) != uint32_at(data.at + 8) || length > LONGEST)
        return UNUSUAL;
    *size = HEADER + (size_t)length + FOOTER;
    if (size_of(data) < *size)
        return INCOMPLETE;
    payload->at = data.at + HEADER;
    payload->end = payload->at + length;
    return masked(crc32c(payload->at, (size_t)length)) == uint32_at(payload->end) ? USUAL : UNUSUAL;
}

/* ---- what Python hands over ----------------------------------------------------------------------------- */

static Bytes bytes_of(const char *at, Py_ssize_t size)
{
    Bytes bytes = {(const uint8_t *)at, (const uint8_t *)at + size};
    return bytes;
}

/* (((name, size), ...), max_frames, num_classes, origin); what it points to lives as long as the tuple. */
static int get_plan(PyObject *tuple, Plan *plan)
{
    PyObject *streams, *origin;
    Py_ssize_t max_frames;
    long long num_classes;
    if (!PyArg_ParseTuple(tuple, "O!nLO", &PyTuple_Type, &streams, &max_frames, &num_classes, &origin))
        return 0;
    Py_ssize_t count = PyTuple_Size(streams);
    if (count > MOST_STREAMS || max_frames < 1 || num_classes < 0) {
        PyErr_Format(PyExc_ValueError, "%zd streams, %zd frames, %lld classes: wanted at most %d, at least 1, 0",
                     count, max_frames, num_classes, MOST_STREAMS);
        return 0;
    }
    memset(plan, 0, sizeof *plan);
    plan->num_streams = (size_t)count;
    plan->max_frames = (size_t)max_frames;
    plan->num_classes = num_classes;
    for (Py_ssize_t number = 0; number < count; number++) {
        PyObject *stream = PyTuple_GetItem(streams, number);
        const char *name;
        Py_ssize_t length, size;
        if (!PyTuple_Check(stream)) {
            PyErr_SetString(PyExc_TypeError, "a stream: wanted (name, values a frame)");
            return 0;
        }
        if (!PyArg_ParseTuple(stream, "y#n", &name, &length, &size))
            return 0;
        if (size < 1) {
            PyErr_Format(PyExc_ValueError, "a stream of %zd values a frame", size);
            return 0;
        }
        plan->streams[number].name = bytes_of(name, length);
        plan->streams[number].size = (size_t)size;
    }
    if (origin != Py_None) {
        char *token;
        Py_ssize_t size;
        if (PyBytes_AsStringAndSize(origin, &token, &size))
            return 0;
        plan->check_origin = 1;
        plan->origin = bytes_of(token, size);
    }
    return 1;
}

/* Where a batch goes; everything is filled from its beginning. */
typedef struct {
    int num_buffers;
    Py_buffer buffers[MOST_STREAMS];
    uint8_t *rooms[MOST_STREAMS]; /* of each stream [frames, size] */
    size_t frames_left[MOST_STREAMS];
    int64_t *counts; /* [videos, streams + 1]: frames of each stream, and labels */
    int64_t *labels; /* one video's behind the other's */
    size_t labels_left;
} Target;

static void release_rooms(Target *target)
{
    while (target->num_buffers)
        PyBuffer_Release(&target->buffers[--target->num_buffers]);
}

static int get_target(PyObject *rooms, const Py_buffer *counts, const Py_buffer *labels, const Plan *plan,
                      Target *target)
{
    target->num_buffers = 0;
    target->counts = counts->buf;
    target->labels = labels->buf;
    target->labels_left = (size_t)labels->len / sizeof(int64_t);
    if (PyTuple_Size(rooms) != (Py_ssize_t)plan->num_streams) {
        PyErr_SetString(PyExc_ValueError, "wanted as many rooms as streams");
        return 0;
    }
    for (size_t stream = 0; stream < plan->num_streams; stream++) {
        Py_buffer *buffer = &target->buffers[stream];
        if (PyObject_GetBuffer(PyTuple_GetItem(rooms, (Py_ssize_t)stream), buffer, PyBUF_WRITABLE)) {
            release_rooms(target);
            return 0;
        }
        target->num_buffers++;
        target->rooms[stream] = buffer->buf;
        target->frames_left[stream] = (size_t)buffer->len / plan->streams[stream].size;
    }
    return 1;
}

/* Videos that there are counts for. */
static size_t most_videos(const Py_buffer *counts, const Plan *plan)
{
    return (size_t)counts->len / (sizeof(int64_t) * (plan->num_streams + 1));
}

/* Copies a video to the end of the batch; 0 if there is no room. */
static int put(const Video *video, const Plan *plan, Target *target)
{
    size_t num_labels = plan->num_classes ? video->num_labels : 0;
    if (num_labels > target->labels_left)
        return 0;
    for (size_t stream = 0; stream < plan->num_streams; stream++)
        if (video->frames[stream].count > target->frames_left[stream])
            return 0;
    for (size_t stream = 0; stream < plan->num_streams; stream++) {
        const Frames *frames = &video->frames[stream];
        copy_frames(frames, target->rooms[stream]);
        target->rooms[stream] += frames->count * plan->streams[stream].size;
        target->frames_left[stream] -= frames->count;
        *target->counts++ = (int64_t)frames->count;
    }
    if (num_labels)
        copy_labels(video, target->labels);
    *target->counts++ = (int64_t)num_labels;
    target->labels += num_labels;
    target->labels_left -= num_labels;
    return 1;
}

static PyObject *text_of(Bytes bytes)
{
    return PyUnicode_DecodeUTF8((const char *)bytes.at, (Py_ssize_t)size_of(bytes), "backslashreplace");
}

static PyObject *list_of_texts(const Bytes *bytes, Py_ssize_t count)
{
    PyObject *list = PyList_New(count);
    for (Py_ssize_t index = 0; list && index < count; index++) {
        PyObject *text = text_of(bytes[index]);
        if (!text || PyList_SetItem(list, index, text))
            Py_CLEAR(list);
    }
    return list;
}

/* ---- the functions -------------------------------------------------------------------------------------- */

/* One pass over the records of `data`. `target` takes the videos, or, where there is none, `spans` takes where
   they are: number of the record, first byte and size of the payload. */
typedef struct {
    Bytes data;
    Plan plan;
    size_t first, every; /* records first, first + every, ... are wanted, the others only verified */
    size_t most;
    Target *target;
    Bytes *ids;
    int64_t *spans;
    size_t num_seen, num_taken, num_bytes, needed;
} Pass;

static void go_on(Pass *pass)
{
    const uint8_t *beginning = pass->data.at;
    while (pass->num_taken < pass->most) {
        Bytes payload;
        Video video;
        size_t size;
        Found found = find_payload(pass->data, &payload, &size);
        if (found == INCOMPLETE)
            pass->needed = size;
        if (found != USUAL)
            break;
        if (pass->num_seen % pass->every == pass->first) {
            if (!read_video(payload, &pass->plan, &video))
                break;
            if (pass->target) {
                if (!put(&video, &pass->plan, pass->target))
                    break;
                pass->ids[pass->num_taken] = video.id;
            } else {
                int64_t *span = pass->spans + 3 * pass->num_taken;
                span[0] = (int64_t)pass->num_seen;
                span[1] = payload.at - beginning;
                span[2] = (int64_t)size_of(payload);
            }
            pass->num_taken++;
        }
        pass->num_seen++;
        pass->data.at += size;
        pass->num_bytes += size;
    }
}

static int get_pass(Pass *pass, Py_buffer *data, PyObject *plan, Py_ssize_t first, Py_ssize_t every)
{
    memset(pass, 0, sizeof *pass);
    if (every < 1 || first < 0 || first >= every) {
        PyErr_Format(PyExc_ValueError, "every %zd-th record from %zd on", every, first);
        return 0;
    }
    pass->data = bytes_of(data->buf, data->len);
    pass->first = (size_t)first;
    pass->every = (size_t)every;
    return get_plan(plan, &pass->plan);
}

static PyObject *pack(PyObject *self, PyObject *args)
{
    PyObject *plan, *rooms, *result = NULL;
    Py_buffer data, counts, labels;
    Py_ssize_t first, every;
    Pass pass;
    Target target;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*O!nnO!w*w*", &data, &PyTuple_Type, &plan, &first, &every, &PyTuple_Type, &rooms,
                          &counts, &labels))
        return NULL;
    if (get_pass(&pass, &data, plan, first, every) && get_target(rooms, &counts, &labels, &pass.plan, &target)) {
        pass.most = most_videos(&counts, &pass.plan);
        pass.target = &target;
        pass.ids = PyMem_Calloc(pass.most + 1, sizeof(Bytes));
        if (pass.ids) {
            Py_BEGIN_ALLOW_THREADS
            go_on(&pass);
            Py_END_ALLOW_THREADS
            PyObject *ids = list_of_texts(pass.ids, (Py_ssize_t)pass.num_taken);
            if (ids)
                result = Py_BuildValue("nnnN", (Py_ssize_t)pass.num_seen, (Py_ssize_t)pass.num_bytes,
                                       (Py_ssize_t)pass.needed, ids);
            PyMem_Free(pass.ids);
        } else {
            PyErr_NoMemory();
        }
        release_rooms(&target);
    }
    PyBuffer_Release(&labels);
    PyBuffer_Release(&counts);
    PyBuffer_Release(&data);
    return result;
}

static PyObject *find(PyObject *self, PyObject *args)
{
    PyObject *plan, *result = NULL;
    Py_buffer data, spans;
    Py_ssize_t first, every;
    Pass pass;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*O!nnw*", &data, &PyTuple_Type, &plan, &first, &every, &spans))
        return NULL;
    if (get_pass(&pass, &data, plan, first, every)) {
        pass.spans = spans.buf;
        pass.most = (size_t)spans.len / (3 * sizeof(int64_t));
        Py_BEGIN_ALLOW_THREADS
        go_on(&pass);
        Py_END_ALLOW_THREADS
        result = Py_BuildValue("nnnn", (Py_ssize_t)pass.num_seen, (Py_ssize_t)pass.num_bytes,
                               (Py_ssize_t)pass.needed, (Py_ssize_t)pass.num_taken);
    }
    PyBuffer_Release(&spans);
    PyBuffer_Release(&data);
    return result;
}

static PyObject *pack_payload(PyObject *self, PyObject *args)
{
    PyObject *plan_tuple, *rooms, *result = NULL;
    Py_buffer payload, counts, labels;
    Plan plan;
    Target target;
    Video video;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*O!O!w*w*", &payload, &PyTuple_Type, &plan_tuple, &PyTuple_Type, &rooms, &counts,
                          &labels))
        return NULL;
    if (get_plan(plan_tuple, &plan) && get_target(rooms, &counts, &labels, &plan, &target)) {
        if (!most_videos(&counts, &plan))
            PyErr_SetString(PyExc_ValueError, "counts: no room for one video");
        else if (read_video(bytes_of(payload.buf, payload.len), &plan, &video) && put(&video, &plan, &target))
            result = text_of(video.id);
        else
            result = Py_NewRef(Py_None);
        release_rooms(&target);
    }
    PyBuffer_Release(&labels);
    PyBuffer_Release(&counts);
    PyBuffer_Release(&payload);
    return result;
}

static PyObject *sum_up(PyObject *self, PyObject *args)
{
    Py_buffer data;
    int by_table;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*p", &data, &by_table))
        return NULL;
    uint32_t crc = by_table ? ~crc_by_table(~0u, data.buf, (size_t)data.len) : crc32c(data.buf, (size_t)data.len);
    PyBuffer_Release(&data);
    return PyLong_FromUnsignedLong(crc);
}

static PyMethodDef methods[] = {
    {"pack", pack, METH_VARARGS, "Copy the frames of usual records straight into a batch."},
    {"find", find, METH_VARARGS, "Where usual records are."},
    {"pack_payload", pack_payload, METH_VARARGS, "Copy the frames of one usual record into a batch."},
    {"crc32c", sum_up, METH_VARARGS, "The checksum, for tests."},
    {NULL, NULL, 0, NULL},
};

static int prepare(PyObject *module)
{
    static int is_prepared; /* not again for a second import, while threads of the first sum up */
    (void)module;
    if (!is_prepared)
        crc_prepare();
    is_prepared = 1;
    return 0;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, prepare},
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED}, /* nothing is kept between calls */
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_usual_records",
    .m_doc = "Records of the usual layout, many in one call.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__usual_records(void) { return PyModuleDef_Init(&definition); }
