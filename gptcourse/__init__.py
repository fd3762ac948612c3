"""A small GPT-3-style language model to read, run and tune: the package behind the course's notebooks.

Each module holds one idea and is named as the notebook that teaches it names it. Importing `gptcourse` imports none of
them, so `import gptcourse` is quick; write `from gptcourse.model import GPT` for what you need.
"""

__version__ = "0.1.0"
