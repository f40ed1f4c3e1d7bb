"""UltraChat, re-implemented to be read, run offline and measured.

One module per idea of the paper; the notebooks tell the story and call these modules.
None of them is imported here on purpose: `from ultrachat import simulation` loads one idea, and
only those that tests/test_docs.py lists load torch.
"""

import warnings

__version__ = "0.1.0"
# in a kernel without ipywidgets every library with a bar of its own warns; ours is plain text (`progress`)
warnings.filterwarnings("ignore", message="IProgress not found")
