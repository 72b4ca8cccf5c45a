"""Checkpoints of other programs: read into workdirs, and written from workdirs.

What belongs here: one file a foreign format, which converts in both directions. It checks the
foreign files, names what does not fit, and says what a format has no place for. A conversion leaves
a workdir that is trained, evaluated and served like any other.

What does not: the weights of frozen LLMs (weights/), this library's own checkpoints (runs/), and
the parsing of arguments (cli/).

official.py         the original implementation's checkpoints
official_format.py  names, settings and checks of their tensors
peft.py             PEFT's LoRA adapters
merged.py           a LoRA merged into its LLM, as a Hugging Face folder
torch_file.py       dictionaries of tensors in torch's own format, which the original writes
"""
