"""From files to arrays: data sets, training clips, input and output files, and drawing. Imports nothing of model/.

`data.sets.registry.DATASETS` names the data sets. `labels`, `frames`, `cityscapes`, `kitti_step` and `download` need no
torch, so that evaluation runs without it.
"""
