"""UltraChat, re-implemented to be read, run offline and measured.

One module per idea of the paper; the notebooks tell the story and call these modules.
Nothing is imported here on purpose: `from ultrachat import simulation` loads one idea, and
only `sft`, `training`, `chatmodels` and `truthfulqa` load torch.
"""

__version__ = "0.1.0"
