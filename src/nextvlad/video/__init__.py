"""From a video file to rows of features, one a second; needs `pip install 'nextvlad[video]'`.

    file --decode.Clip--> Picture and Sound --clip.read_clip--> ClipPart (uint8 pictures, sound)
         --backbone.Backbone--> float rows --pca.Pca--> --quantise.Quantiser--> uint8 rows

`extractor.Extractor` is the whole chain for one file. Up to `clip` no module imports torch, so that worker
processes which only decode stay small.
"""
