"""The two things that go wrong by the user's hand; everything else is a bug and keeps its own exception."""


class LoraDropError(Exception):
    """Base of the errors that carry a message for the user: the rule, what came, the way out."""


class ArgumentError(LoraDropError, ValueError):
    """A model_arg, a command-line option or a config entry that cannot be used as written."""


class AdapterError(LoraDropError, ValueError):
    """An adapter or a base model that cannot be evaluated layer by layer."""
