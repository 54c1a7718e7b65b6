"""Files to arrays: the data sets, clips of them for training, and what is drawn from them. Imports nothing of model/.

`data.registry.DATASETS` names the data sets. `labels`, `frames`, `cityscapes`, `kitti_step` and `download` need no
torch, so that evaluation runs without it.
"""
