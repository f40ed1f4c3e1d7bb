"""The one exception a user meets: a single line that says what is wrong and what was expected.

Absent on purpose: a hierarchy. Whoever needs to tell failures of a language model apart uses
`teacher.Failure.kind`; everything else stops the run.
"""

from __future__ import annotations


class Stop(Exception):
    """The run stops here; the message is one line naming the file, line and field, or the parameter.

    Notebooks show it without a traceback (see `runs.open_run`) and papermill still fails on it.
    What cannot be printed (escape sequences, lone surrogates from a broken file) is replaced.

    Ours: the paper does not treat errors.
    """

    def __init__(self, line: str) -> None:
        one_line = " ".join(str(line).split())
        super().__init__("".join(c if c.isprintable() else "\ufffd" for c in one_line))
