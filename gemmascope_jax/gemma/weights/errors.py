"""What can be wrong with weights and tokenizers."""


class WeightsNotFoundError(FileNotFoundError):
  """There are no weights at the source; the message says how to get them."""


class GatedModelError(WeightsNotFoundError):
  """The weights are there, but for those who accepted their licence."""


class WeightsFormatError(ValueError):
  """A weight file is damaged or cut short, or a tensor missing or misshapen."""


class TokenizerNotFoundError(FileNotFoundError):
  """The source holds no tokenizer."""


class TokenizerMismatchError(ValueError):
  """The tokenizer is not that of the model."""
