"""Reads frame records with tf.data on one thread, for `benchmarks/reading.py`, where TensorFlow is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from nextvlad.config import StreamConfig


def batches(
    paths: Sequence[str],
    streams: Sequence[StreamConfig],
    *,
    num_classes: int,
    batch_size: int,
    max_frames: int,
) -> Iterator[Any]:
    """All records of some plain files, `batch_size` at a time, as ragged uint8 frames [B, (T), D].

    tf.data verifies both checksums. Labels become [B, C] bool, as ours do.
    """
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)

    def parse(serialized: Any) -> Any:
        context, lists = tf.io.parse_single_sequence_example(
            serialized,
            context_features={
                "id": tf.io.FixedLenFeature([], tf.string, default_value=""),
                "video_id": tf.io.FixedLenFeature([], tf.string, default_value=""),
                "labels": tf.io.VarLenFeature(tf.int64),
            },
            sequence_features={
                stream.name: tf.io.FixedLenSequenceFeature([], tf.string) for stream in streams
            },
        )
        frames = {
            stream.name: tf.reshape(
                tf.io.decode_raw(lists[stream.name][:max_frames], tf.uint8), [-1, stream.size]
            )
            for stream in streams
        }
        labels = tf.sparse.to_dense(tf.cast(context["labels"], tf.int32))
        marked = tf.reduce_any(tf.one_hot(labels, num_classes, on_value=True, off_value=False), axis=0)
        return context["id"] + context["video_id"], marked, frames

    data = tf.data.TFRecordDataset(list(paths)).map(parse, num_parallel_calls=1).ragged_batch(batch_size)
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    return iter(data.with_options(options))
