"GPT-2 reproduced, from raw text to zero-shot scores"
from importlib.metadata import version

__version__ = version('gpt2repro')
