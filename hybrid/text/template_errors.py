"""Why a chat template gives no text."""


class TemplateRefused(Exception):
    """The template called `raise_exception`: it will not have these messages."""


class TemplateFailed(Exception):
    """The template is wrong."""


class TemplateExceeded(Exception):
    """The template went beyond its bounds of time, memory or length."""
