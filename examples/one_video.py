"""One video from the bytes of a file to named labels and a score, a step at a time.

    python examples/one_video.py

docs/one_video.md tells the same in words. The data is that of `nextvlad demo`, inside the package:
speech in place of video, 12 numbers a frame, who of nine men is speaking. The weights are random, so
the labels mean nothing yet; put a checkpoint folder behind the command and they do:

    nextvlad demo
    python examples/one_video.py demo-run/nextvlad
"""

from __future__ import annotations

import sys
from importlib.resources import as_file, files

import torch

from nextvlad import NeXtVLADConfig, StreamConfig, Vocabulary, build_model, collate, load, metrics, read
from nextvlad.data.tfrecord import read_records
from nextvlad.data.video_record import parse_video_record
from nextvlad.predict import predict_batch


def main() -> None:
    """Prints what each step gives."""
    torch.manual_seed(0)
    with as_file(files("nextvlad") / "demo_data") as folder:
        shard = folder / "test-0000-of-0002.tfrecord"

        # 1. A file is a row of records; the checksums of each are verified while it is read.
        record = next(read_records(shard))
        print(f"record    number {record.place.number} at byte {record.place.offset} of {shard.name}")
        print(f"payload   {list(record.payload.shape)} {record.payload.dtype}")

        # 2. The bytes of a record are one video: id, labels, and a [T, D] array a stream.
        video = parse_video_record(record.payload)
        print(f"video     {video.video_id}, labels {video.labels.tolist()}")
        for name, frames in video.streams.items():
            print(f"stream    {name} {list(frames.shape)} {frames.dtype}")

        # 3. Several videos, packed: the frames of all lie one behind the other, without padding.
        videos = list(read(shard))[::60]
        vocabulary = Vocabulary.load(folder / "vocabulary.csv")

    streams = (StreamConfig(name="lpc", size=12),)
    batch = collate(videos, streams=streams, num_classes=len(vocabulary))
    packed = batch.streams["lpc"]
    print(f"batch     {batch.num_videos} videos, labels {list(batch.labels.shape)} {batch.labels.dtype}")
    print(f"frames    {list(packed.values.shape)} {packed.values.dtype}, offsets {packed.offsets.tolist()}")

    # 4. The model takes the bytes as they are: dequantisation is its first layer.
    if len(sys.argv) > 1:
        model = load(sys.argv[1])
    else:
        config = NeXtVLADConfig(
            streams=streams, num_classes=len(vocabulary), clusters=32, groups=4, hidden_size=256
        )
        model = build_model(config).eval()
    batch = batch.to("cpu")  # or "cuda", with the model there too
    with torch.inference_mode():
        descriptors = model.describe(model.aggregate(batch))
        logits = model(batch)
    print(f"describe  {list(descriptors.shape)} {descriptors.dtype}")
    print(f"logits    {list(logits.shape)} {logits.dtype}")

    # 5. The best labels of each video, and how good they are.
    for prediction in predict_batch(model, batch, top_k=2):
        best = ", ".join(
            f"{vocabulary[label]} {score:.3f}"
            for label, score in zip(prediction.labels, prediction.scores, strict=True)
        )
        print(f"predict   {prediction.video_id}: {best}")
    probabilities = torch.sigmoid(logits)
    print(f"GAP       {metrics.gap(probabilities, batch.labels):.3f}")
    print(f"Hit@1     {metrics.hit_at_one(probabilities, batch.labels):.3f}")


if __name__ == "__main__":
    main()
