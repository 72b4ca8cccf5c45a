"""The frozen decoder and what is trained inside it.

Here belong the decoder's layers as its family describes them, masks and rotary embedding, what a
LoRA is, MoE-CL's layer as the paper writes it (`experts`), heads, and where arrays lie on a mesh of
devices (`sharding`). How a sum or a product is computed fast belongs to `kernels`, which these
modules call; file formats belong to `weights`, and what is trained when, and by which loss, to
`methods` and `training`.
"""
