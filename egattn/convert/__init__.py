"""Hugging Face GPT-2 directories to run directories and back."""

from egattn.convert.convert import ConvertConfig as ConvertConfig
from egattn.convert.convert import convert as convert
