"""X-Reasoner: make vision-language models reason with text alone, and show what that did."""

__version__ = "0.1.0"
